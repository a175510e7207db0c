import json
from collections import Counter

import pytest

from worker.jobs.lines import check_line
from worker.prove.plan import Options, Plan, Trouble, make_plan


def plan(seed: int = 7, **sizes: float) -> Plan:
    return make_plan(Options(seed=seed, **sizes))  # type: ignore[arg-type]  # by their names


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    assert plan(7) == plan(7)
    assert plan(7) != plan(8)


@pytest.mark.parametrize("jobs", [20, 200, 1_001])
def test_as_many_jobs_are_handed_in_as_were_asked_for(jobs: int) -> None:
    assert plan(jobs=jobs).jobs == jobs


def test_every_kind_of_trouble_comes_even_in_the_shortest_plan() -> None:
    assert Counter(one.kind for one in plan(seconds=5).events) == Counter(Trouble)


def test_a_longer_turmoil_has_more_of_each() -> None:
    counted = Counter(one.kind for one in plan(seconds=60).events)
    assert set(counted.values()) == {4}


def test_all_begins_within_the_turmoil_in_the_order_of_its_moments() -> None:
    made = plan(seconds=30)
    for moments in ([one.at for one in made.events], [one.at for one in made.handovers]):
        assert moments == sorted(moments)
        assert moments[0] >= 0
        assert moments[-1] < 30


def test_work_is_mixed_and_one_batch_is_cancelled() -> None:
    made = plan()
    batches = [one for one in made.handovers if one.name]
    assert len(batches) > 2
    assert len({one.name for one in batches}) == len(batches)
    assert sum(one.cancel_after is not None for one in batches) == 1
    assert any(one.name is None for one in made.handovers)
    streamed = [body.get("stream", False) for one in made.handovers for body in one.bodies]
    assert set(streamed) == {True, False}


def test_no_two_requests_are_the_same() -> None:
    bodies = [json.dumps(body) for one in plan().handovers for body in one.bodies]
    assert len(set(bodies)) == len(bodies)


def test_the_lines_of_a_batch_are_of_the_batch_format() -> None:
    batch = next(one for one in plan().handovers if one.name)
    found = [check_line(line, number) for number, line in enumerate(batch.lines(), 1)]
    assert [getattr(one, "custom_id", one) for one in found] == list(batch.custom_ids)


def test_troubles_strike_workers_that_there_are() -> None:
    for one in plan(workers=4).events:
        assert sorted(one.workers) == [0, 1, 2, 3]
