from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.acts import (
    cancel_batch,
    claim,
    enlist,
    failure,
    outcome_of,
    put,
    put_off,
    submit_batch,
    submit_single,
)
from worker.exporter import QueueCollector
from worker.jobs.states import State
from worker.store.engine import Database


def scraped(database: Database) -> dict[tuple[str, ...], float]:
    """What a scrape gives: by the metric's name and its labels' values, in their order."""
    registry = CollectorRegistry()
    registry.register(QueueCollector(database))
    return {
        (one.name.removeprefix("chatqueue_"), *one.labels.values()): one.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for one in family.samples
    }


def test_an_empty_queue_is_all_zeros_and_has_no_holes(database: Database) -> None:
    found = scraped(database)
    assert found.pop(("database_up",)) == 1
    assert set(found.values()) == {0}
    assert {key[1:] for key in found if key[0] == "jobs"} == {
        (queue, state)
        for queue in ("bulk", "interactive")
        for state in ("queued", "waiting", "running", "held")
    }


def test_open_jobs_are_counted_by_queue_and_state(database: Database) -> None:
    batch_id = submit_batch(database, 6)
    submit_single(database)
    first, second, third, _ = claim(database, enlist(database), **{batch_id: 4})
    put(database, outcome_of(first))
    put_off(database, second, 60)
    put(database, outcome_of(third, failure(), State.HELD))
    found = scraped(database)
    assert found["jobs", "bulk", "queued"] == 2
    assert found["jobs", "bulk", "running"] == 1
    assert found["jobs", "bulk", "waiting"] == 1
    assert found["jobs", "bulk", "held"] == 1
    assert found["jobs", "interactive", "queued"] == 1
    assert (found["batches", "in_progress"], found["batches", "cancelling"]) == (1, 0)
    assert found[("workers",)] == 1


def test_the_age_of_the_oldest_is_that_of_what_nobody_has_begun(database: Database) -> None:
    submit_single(database, age_seconds=3_600)
    submit_single(database, age_seconds=60)
    batch_id = submit_batch(database, 1)
    assert 0 <= scraped(database)["oldest_queued_age_seconds", "bulk"] < 60
    assert 3_590 < scraped(database)["oldest_queued_age_seconds", "interactive"] < 3_660
    claim(database, enlist(database), **{batch_id: 1})
    assert scraped(database)["oldest_queued_age_seconds", "bulk"] == 0


def test_what_is_cancelled_counts_no_more(database: Database) -> None:
    batch_id = submit_batch(database, 3)
    cancel_batch(database, batch_id)
    found = scraped(database)
    assert found["jobs", "bulk", "queued"] == 0
    assert found["oldest_queued_age_seconds", "bulk"] == 0


def test_a_database_that_is_away_is_told_and_does_not_end_the_scrape() -> None:
    with Database("postgresql+psycopg://nobody@127.0.0.1:1/none") as away:
        assert scraped(away) == {("database_up",): 0}
