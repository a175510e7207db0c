"""A database's clock that goes back: nothing waits for as long as it went."""

import pytest

from tests.contract.acts import (
    claim,
    claim_due,
    enlist,
    failure,
    outcome_of,
    put,
    put_off,
    submit_batch,
)
from worker.execution.upkeep import Upkeep
from worker.jobs.states import State
from worker.settings import Settings
from worker.store import leases, pauses, queries, setback
from worker.store.engine import Database
from worker.store.pauses import Refusal
from worker.store.scratch import move_time

HOUR = 3_600.0
LEASE = 30.0


def mend(database: Database) -> int:
    with database.write() as connection:
        return setback.mend_step(connection)


def is_seen(database: Database, worker_id: str) -> bool:
    with database.read() as connection:
        return setback.is_seen(connection, worker_id, LEASE)


def waiting(database: Database, jobs: int, delay_seconds: float = 5.0) -> str:
    """Put jobs off; return the worker that did."""
    worker_id = enlist(database, LEASE)
    for one in claim(database, worker_id, **{submit_batch(database, jobs): jobs}):
        put_off(database, one, delay_seconds)
    return worker_id


def due(database: Database) -> int:
    return len(claim_due(database, enlist(database)))


def test_a_worker_sees_it_by_its_own_lease(database: Database) -> None:
    worker_id = enlist(database, LEASE)
    assert not is_seen(database, worker_id)
    move_time(database, HOUR)
    assert is_seen(database, worker_id)
    with database.write() as connection:
        leases.heartbeat(connection, worker_id, LEASE)
    assert not is_seen(database, worker_id)
    move_time(database, -HOUR)
    assert not is_seen(database, worker_id)


def test_what_was_put_off_before_it_goes_on(database: Database) -> None:
    waiting(database, 3)
    move_time(database, HOUR)
    assert due(database) == 0
    assert mend(database) == 3
    assert due(database) == 3
    assert mend(database) == 0


def test_what_is_put_off_by_the_clock_as_it_is_waits_its_time(database: Database) -> None:
    waiting(database, 2, HOUR)
    assert mend(database) == 0
    assert due(database) == 0


def test_only_the_last_call_of_a_job_counts(database: Database) -> None:
    """One that was put off again since then waits for its own time."""
    worker_id = waiting(database, 1, 0.0)
    (one,) = claim_due(database, worker_id)
    move_time(database, HOUR)
    put_off(database, one, HOUR)
    assert mend(database) == 0


def test_it_is_mended_step_by_step(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setback, "STEP", 2)
    waiting(database, 5)
    move_time(database, HOUR)
    assert [mend(database) for _ in range(4)] == [2, 2, 1, 0]


def test_a_pause_is_probed_and_can_be_ended_by_the_probe(database: Database) -> None:
    (first,) = claim(database, enlist(database), **{submit_batch(database, 1): 1})
    refusal = Refusal("key", "insufficient_quota", "no credit", "https://x", None)
    put(database, outcome_of(first, failure(), State.WAITING, refusal=refusal))
    move_time(database, HOUR)
    mend(database)
    with database.write() as connection:
        (found,) = pauses.active(connection)
        assert found.probe_seconds <= 0
        assert pauses.take_probe(connection, "key")
    (again,) = claim_due(database, enlist(database))
    put(database, outcome_of(again, proves="key"))
    with database.read() as connection:
        assert pauses.active(connection) == []


def test_reports_go_on(database: Database) -> None:
    submit_batch(database, 1)

    def reported() -> int:
        with database.write() as connection:
            return len(queries.take_reports(connection, 1.0, 2.0))

    assert reported() == 1
    assert reported() == 0
    move_time(database, HOUR)
    assert reported() == 1
    assert reported() == 0


def test_the_upkeep_of_a_worker_mends_what_it_sees_and_what_was_there_before_it(
    database: Database,
) -> None:
    waiting(database, 2)
    move_time(database, HOUR)
    worker_id = enlist(database, LEASE)
    upkeep = Upkeep(database, worker_id, Settings.apart(lease_seconds=LEASE))
    upkeep.run(())
    assert due(database) == 2
    upkeep.run(())
    waiting(database, 4)
    move_time(database, HOUR)
    upkeep.run(())
    assert due(database) == 4
