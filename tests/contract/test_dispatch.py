import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import update

from tests.contract.acts import (
    claim_one,
    enlist,
    failure,
    ledger,
    new_job,
    outcome_of,
    put,
    raw_job,
    submit_batch,
    submit_single,
)
from worker.execution.board import Board
from worker.execution.dispatch import IMAGES_AT_ONCE, Dispatch, Haul
from worker.execution.routes import Assignment, Routes, fingerprint
from worker.gate import circuit
from worker.gate.gate import Ask, Gate, Report, Target
from worker.gate.meter import Caps, Told
from worker.gate.shelf import OwnShelf, Step
from worker.jobs.queues import BULK
from worker.jobs.states import State
from worker.models import pause
from worker.settings import Settings
from worker.store import pauses, submission
from worker.store.engine import Database
from worker.store.pauses import Refusal
from worker.store.submission import NewBatch, NewJob

FIRST, SECOND, PICTURES, RICH = (
    f"https://{name}.example" for name in ("first", "second", "pictures", "rich")
)
KEY, OWN_KEY = "sk-common", "sk-rich"

T = TypeVar("T")


class SteadyShelf:
    """A shelf whose clock is set."""

    def __init__(self) -> None:
        self.shelf = OwnShelf()
        self.now = 1_000.0

    def change(self, names: Sequence[str], step: Step[T]) -> T:
        return self.shelf.change(names, lambda states, _: step(states, self.now))


class Desk:
    """A worker's dispatch, and what its gate is told."""

    def __init__(self, database: Database, caps: Caps | None = None) -> None:
        settings = Settings.load(
            api_key=KEY,
            text_endpoints=(FIRST, SECOND),
            multimodal_endpoints=(PICTURES,),
            endpoint_keys=f"{RICH}={OWN_KEY}",
        )
        self.shelf = SteadyShelf()
        self.gate = Gate(self.shelf, caps or Caps(), "w")
        self.board = Board()
        worker_id = enlist(database)
        self.dispatch = Dispatch(database, worker_id, self.gate, Routes(settings), self.board)
        for endpoint in (FIRST, SECOND, PICTURES, RICH):
            self.prove(target(endpoint))
        self.shelf.now += 60

    def prove(self, one: Target) -> None:
        """Let a call be answered, after which as many may go as there are wished for."""
        assert self.gate.ask([Ask((one,), 1)], {})[0].count == 1
        self.shelf.now += 1
        self.tell(one, proof=True)

    def tell(self, one: Target, *, well: bool = True, times: int = 1, **told: Any) -> None:
        report = Report(one, time.monotonic(), fresh=True, well=well, told=Told(**told))
        self.gate.tell([report] * times, {})

    def break_(self, *endpoints: str) -> None:
        """Open these endpoints' circuits."""
        for endpoint in endpoints:
            self.tell(target(endpoint), well=False, times=circuit.FAILURES)
            self.shelf.now += 0.1


def target(endpoint: str = FIRST, model: str = "gpt-5.1") -> Target:
    return Target(endpoint, fingerprint(OWN_KEY if endpoint == RICH else KEY), model)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def submit(database: Database, jobs: Sequence[NewJob], priority: int = 0) -> str:
    """Store an open batch of these."""
    new = NewBatch("requests.jsonl", BULK, priority)
    with database.write() as connection:
        batch_id = submission.create_batch(connection, new)
    assert submission.add_jobs(database, batch_id, new, jobs) == {}
    with database.write() as connection:
        submission.open_batch(connection, batch_id, len(jobs), None, None)
    return batch_id


def pause_key(database: Database, key: str = KEY) -> None:
    """Pause a key, as a refused call does."""
    one = claim_one(database, enlist(database), submit_single(database))
    assert one is not None
    refusal = Refusal(fingerprint(key), "insufficient_quota", "no credit", FIRST, None)
    with database.write() as connection:
        pauses.begin(connection, refusal, one.id, one.fence)


def make_probes_due(database: Database) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    with database.write() as connection:
        connection.execute(update(pause).values(probe_at=past))


def batches(haul: Haul) -> Counter[str | None]:
    return Counter(one.claimed.batch_id for one in haul.assignments)


def endpoints(found: Sequence[Assignment]) -> list[str]:
    return [one.target.endpoint for one in found]


# --- shares ---------------------------------------------------------------------------------------


def test_two_batches_share_the_places(database: Database, desk: Desk) -> None:
    long, short = submit_batch(database, 50), submit_batch(database, 50)
    assert batches(desk.dispatch.claim(10)) == {long: 5, short: 5}


def test_nothing_to_do_is_told_as_such(desk: Desk) -> None:
    assert desk.dispatch.claim(10) == Haul([], None)
    assert not desk.dispatch.has_work()


def test_a_higher_priority_is_served_first(database: Database, desk: Desk) -> None:
    submit_batch(database, 50)
    urgent = submit_batch(database, 50, priority=5)
    assert batches(desk.dispatch.claim(10)) == {urgent: 10}


def test_what_a_limited_lane_may_not_use_goes_to_the_others(database: Database, desk: Desk) -> None:
    desk.prove(target(model="gemini"))
    held = submit_batch(database, 50, priority=5)
    free = submit(database, [replace(new_job(n + 1), model="gemini") for n in range(50)])
    desk.tell(target(), refused=True, wait_seconds=7.0)
    haul = desk.dispatch.claim(10)
    assert held not in batches(haul)
    assert batches(haul) == {free: 10}
    assert haul.wait_seconds == pytest.approx(7.0, abs=0.1)


def test_a_claim_is_noted_in_the_ledger_with_its_endpoint(database: Database, desk: Desk) -> None:
    submit_batch(database, 1)
    (one,) = desk.dispatch.claim(10).assignments
    assert one.target == target()
    assert (one.endpoints, one.is_probe) == (2, False)
    assert [row["endpoint"] for row in ledger(database, one.claimed.id)] == [FIRST]


# --- pauses ---------------------------------------------------------------------------------------


def test_a_lane_whose_key_is_paused_is_left_alone(database: Database, desk: Desk) -> None:
    submit_batch(database, 5)
    pause_key(database)
    haul = desk.dispatch.claim(10)
    assert haul.assignments == []
    assert haul.wait_seconds is not None
    assert 1.0 <= haul.wait_seconds <= pauses.FIRST_PROBE_SECONDS
    assert not desk.dispatch.has_work()


def test_of_a_paused_key_one_probe_is_claimed_when_it_is_due(
    database: Database, desk: Desk
) -> None:
    submit_batch(database, 5)
    urgent = submit_batch(database, 5, priority=1)
    pause_key(database)
    make_probes_due(database)
    assert desk.dispatch.has_work()
    (probe,) = desk.dispatch.claim(10).assignments
    assert (probe.claimed.batch_id, probe.is_probe) == (urgent, True)
    assert not desk.dispatch.has_work()
    assert desk.dispatch.claim(10).assignments == []


def test_a_lane_with_a_key_that_is_not_paused_goes_on(database: Database, desk: Desk) -> None:
    submit_batch(database, 5)
    rich = submit(database, [replace(new_job(n + 1), endpoints=(FIRST, RICH)) for n in range(5)])
    pause_key(database)
    haul = desk.dispatch.claim(10)
    assert batches(haul) == {rich: 5}
    assert set(endpoints(haul.assignments)) == {RICH}


# --- where calls go -------------------------------------------------------------------------------


def test_jobs_with_endpoints_of_their_own_go_there(database: Database, desk: Desk) -> None:
    submit(database, [replace(new_job(1), endpoints=(RICH,))])
    (one,) = desk.dispatch.claim(10).assignments
    assert one.target == target(RICH)
    assert one.endpoints == 1


def test_a_diverted_job_goes_to_the_next_endpoint_and_round(database: Database, desk: Desk) -> None:
    submit_batch(database, 1)
    for diverts, endpoint in enumerate((FIRST, SECOND, FIRST)):
        (one,) = desk.dispatch.claim(10).assignments
        assert one.target == target(endpoint)
        waits = outcome_of(one.claimed, failure(), State.WAITING, diverts=diverts + 1)
        put(database, waits)


def test_where_an_endpoint_is_broken_the_next_one_is_used(database: Database, desk: Desk) -> None:
    submit_batch(database, 5)
    desk.break_(FIRST)
    found = desk.dispatch.claim(10).assignments
    assert endpoints(found) == [SECOND] * 5
    assert {one.endpoints for one in found} == {2}


def test_where_every_endpoint_is_broken_one_job_tries_when_they_have_rested(
    database: Database, desk: Desk
) -> None:
    submit_batch(database, 5)
    desk.break_(SECOND, FIRST)
    haul = desk.dispatch.claim(10)
    assert haul.assignments == []
    assert haul.wait_seconds == pytest.approx(circuit.FIRST_REST_SECONDS - 0.2)
    assert not desk.dispatch.has_work()
    desk.shelf.now += circuit.FIRST_REST_SECONDS - 0.15  # the second one's time, not the first's
    assert desk.dispatch.has_work()
    assert endpoints(desk.dispatch.claim(10).assignments) == [SECOND]


# --- leave ----------------------------------------------------------------------------------------


def test_leave_that_found_no_job_is_there_for_the_next_claim(database: Database) -> None:
    desk = Desk(database, Caps(requests_per_minute=600))
    submit_batch(database, 3)
    assert len(desk.dispatch.claim(50).assignments) == 3
    submit_batch(database, 50)
    assert len(desk.dispatch.claim(50).assignments) == 10 - 3
    assert not desk.dispatch.has_work()
    held = desk.dispatch.claim(50)
    assert held.assignments == []
    assert held.wait_seconds == pytest.approx(0.1)


def test_leave_for_a_job_that_went_elsewhere_is_there_again(database: Database) -> None:
    desk = Desk(database, Caps(requests_per_minute=600))
    submit_batch(database, 1)
    (one,) = desk.dispatch.claim(1).assignments
    put(database, outcome_of(one.claimed, failure(), State.WAITING, diverts=1))
    desk.shelf.now += 10
    # Both buckets are full at this moment.
    desk.gate.ask([Ask((target(where),), 0) for where in (FIRST, SECOND)], {})
    assert endpoints(desk.dispatch.claim(10).assignments) == [SECOND]
    first, second = desk.gate.look(
        [Ask((target(where),), 99) for where in (FIRST, SECOND)], desk.board.by_target
    )
    assert (first.count, second.count) == (10, 9)


def test_a_limit_that_holds_everything_leaves_no_work(database: Database, desk: Desk) -> None:
    submit_batch(database, 5)
    assert desk.dispatch.has_work()
    desk.tell(target(), refused=True, wait_seconds=7.0)
    assert not desk.dispatch.has_work()
    desk.shelf.now += 7.0
    assert desk.dispatch.has_work()


def test_looking_for_work_takes_no_leave(database: Database) -> None:
    desk = Desk(database, Caps(requests_per_minute=600))
    submit_batch(database, 50)
    assert all(desk.dispatch.has_work() for _ in range(20))
    assert len(desk.dispatch.claim(50).assignments) == 10


# --- images and single jobs -----------------------------------------------------------------------


def test_of_jobs_with_images_only_some_are_claimed_at_once(database: Database, desk: Desk) -> None:
    jobs = [replace(new_job(n + 1), multimodal=True) for n in range(IMAGES_AT_ONCE + 10)]
    submit(database, jobs)
    found = desk.dispatch.claim(200).assignments
    assert endpoints(found) == [PICTURES] * IMAGES_AT_ONCE
    assert len(desk.dispatch.claim(200).assignments) == 10


def test_a_single_job_is_claimed_by_its_message(database: Database, desk: Desk) -> None:
    job_id, other = submit_single(database), submit_single(database)
    haul = desk.dispatch.claim_single(job_id)
    assert [one.claimed.id for one in haul.assignments] == [job_id]
    assert desk.dispatch.claim_single(job_id) == Haul()
    assert desk.dispatch.claim_single("job-of-nobody") == Haul()
    assert raw_job(database, other)["state"] == State.QUEUED


def test_a_single_job_that_is_held_tells_how_long(database: Database, desk: Desk) -> None:
    job_id = submit_single(database)
    desk.tell(target(), refused=True, wait_seconds=7.0)
    haul = desk.dispatch.claim_single(job_id)
    assert haul.assignments == []
    assert haul.wait_seconds == pytest.approx(7.0, abs=0.1)
    assert raw_job(database, job_id)["state"] == State.QUEUED


def test_a_single_job_can_be_the_probe_of_a_paused_key(database: Database, desk: Desk) -> None:
    job_id = submit_single(database)
    pause_key(database)
    assert desk.dispatch.claim_single(job_id).assignments == []
    make_probes_due(database)
    (probe,) = desk.dispatch.claim_single(job_id).assignments
    assert probe.is_probe
