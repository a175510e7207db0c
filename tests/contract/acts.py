"""What the tests of the store do over and over: submit, claim, answer, look, all at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, Final, TypeVar

from sqlalchemy import func, select, update

from worker.jobs.outcomes import Answer, ErrorClass, Exchange, Failure, Outcome, Phase, Usage
from worker.jobs.queues import BULK, INTERACTIVE
from worker.jobs.states import State
from worker.jobs.views import Batch, Job
from worker.models import attempt, batch, job
from worker.store import (
    claims,
    endings,
    leases,
    lost,
    queries,
    records,
    redrive,
    submission,
)
from worker.store.claims import Claimed
from worker.store.engine import Database
from worker.store.lanes import SINGLES, Lane, lanes_with_work
from worker.store.records import Record, Recorded
from worker.store.redrive import Again, Change
from worker.store.submission import NewBatch, NewJob

ENDPOINT: Final = "https://first.example"
USAGE: Final = Usage(
    prompt_tokens=11, cached_tokens=3, completion_tokens=7, reasoning_tokens=2, total_tokens=18
)

T = TypeVar("T")


def all_at_once(*acts: Callable[[], T]) -> list[T]:
    """Run these in a thread each, begun together; return or raise what they do."""
    line = Barrier(len(acts))

    def run(act: Callable[[], T]) -> T:
        line.wait(timeout=30)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(run, act) for act in acts]]


# --- submitting -----------------------------------------------------------------------------------


def new_job(line: int, custom_id: str | None = None, body: str = "{}") -> NewJob:
    return NewJob(
        line, custom_id or f"line-{line}", body, "gpt-5.1", multimodal=False, stream=False
    )


def fill_batch(database: Database, jobs: int, priority: int = 0) -> str:
    """Store a batch that is not opened."""
    new = NewBatch("requests.jsonl", BULK, priority)
    with database.write() as connection:
        batch_id = submission.create_batch(connection, new)
    assert submission.add_jobs(database, batch_id, new, [new_job(n + 1) for n in range(jobs)]) == {}
    return batch_id


def submit_batch(database: Database, jobs: int, priority: int = 0) -> str:
    batch_id = fill_batch(database, jobs, priority)
    with database.write() as connection:
        submission.open_batch(connection, batch_id, jobs, None, None)
    return batch_id


def submit_single(database: Database, priority: int = 0, age_seconds: float = 0.0) -> str:
    with database.write() as connection:
        new = NewBatch("", INTERACTIVE, priority)
        (job_id,) = submission.insert_jobs(connection, None, new, [new_job(0)])
        made = datetime.now(UTC) - timedelta(seconds=age_seconds)
        connection.execute(update(job).where(job.c.id == job_id).values(created_at=made))
    return job_id


# --- claiming -------------------------------------------------------------------------------------


def enlist(database: Database, lease_seconds: float = 60.0) -> str:
    """Register a worker."""
    with database.write() as connection:
        return leases.register_worker(
            connection, name="w@host", host="host", pid=1, lease_seconds=lease_seconds
        )


def lose(database: Database, *worker_ids: str) -> None:
    """End leases as if their workers had died a second ago."""
    with database.write() as connection:
        for worker_id in worker_ids:
            leases.heartbeat(connection, worker_id, -1.0)


def claim(database: Database, worker_id: str, **shares: int) -> list[Claimed]:
    """Claim up to so many jobs of each batch's lanes."""
    with database.write() as connection:
        return [
            one
            for lane in lanes_with_work(connection, BULK, INTERACTIVE)
            if lane.batch_id in shares
            for one in claims.claim_lane(
                connection, worker_id, lane, shares[lane.batch_id], lambda _: ENDPOINT
            )
        ]


def claim_due(database: Database, worker_id: str, limit: int = 100) -> list[Claimed]:
    """Claim up to so many jobs of each lane that waited, and none that did not."""
    with database.write() as connection:
        due = [replace(one, ready=False) for one in lanes_with_work(connection, BULK, INTERACTIVE)]
        return [
            one
            for lane in due
            for one in claims.claim_lane(connection, worker_id, lane, limit, lambda _: ENDPOINT)
        ]


def claim_singles(database: Database, worker_id: str, share: int) -> list[Claimed]:
    return claim(database, worker_id, **{SINGLES: share})


def claim_one(database: Database, worker_id: str, job_id: str) -> Claimed | None:
    with database.write() as connection:
        return claims.claim_one(connection, worker_id, job_id, lambda _: ENDPOINT)


def lanes(database: Database) -> list[Lane]:
    """The lanes with work, the highest priority first, then in the order of their batches."""
    with database.read() as connection:
        found = lanes_with_work(connection, BULK, INTERACTIVE)
    return sorted(found, key=lambda lane: (-lane.priority, lane.batch_id))


def rescue(
    database: Database, max_attempts: int = 3, unknown_outcome: str = "retry", limit: int = 1_000
) -> int:
    """Take over from every worker whose lease has run out, or that was found dead."""
    with database.write() as connection:
        signs = leases.signs_of_others(connection, "")
        dead = [sign for sign in signs if sign.lapsed or sign.stopped]
        return lost.rescue(
            connection,
            dead,
            max_attempts=max_attempts,
            unknown_outcome=unknown_outcome,
            limit=limit,
        )


def give_back(
    database: Database,
    worker_id: str,
    keys: Sequence[tuple[str, int]],
    unknown_outcome: str = "retry",
) -> None:
    with database.write() as connection:
        lost.give_back(connection, worker_id, keys, unknown_outcome)


# --- answering ------------------------------------------------------------------------------------


def answer(**fields: Any) -> Answer:
    values: dict[str, Any] = {
        "body": '{"id": "a"}',
        "content": "Hi",
        "finish_reason": "stop",
        "usage": USAGE,
    }
    return Answer(**values | fields)


def failure(**fields: Any) -> Failure:
    values: dict[str, Any] = {
        "error_class": ErrorClass.RETRY,
        "code": "server_error",
        "message": "try again",
        "phase": Phase.ANSWERING,
        "status": 500,
    }
    return Failure(**values | fields)


def outcome_of(
    claimed: Claimed, outcome: Outcome | None = None, state: State | None = None, **fields: Any
) -> Record:
    outcome = outcome or answer()
    default = State.SUCCEEDED if isinstance(outcome, Answer) else State.FAILED
    exchange = Exchange(outcome, ENDPOINT, 0.25)
    return Record(claimed.id, claimed.fence, claimed.batch_id, exchange, state or default, **fields)


def put(database: Database, *outcomes: Record) -> Recorded:
    """Record outcomes in one transaction."""
    with database.write() as connection:
        return records.record(connection, outcomes)


def put_off(database: Database, claimed: Claimed, delay_seconds: float, **fields: Any) -> Recorded:
    """Record a failure after which the job waits."""
    record = outcome_of(claimed, failure(), State.WAITING, delay_seconds=delay_seconds, **fields)
    return put(database, record)


def cancel_job(database: Database, job_id: str) -> int:
    with database.write() as connection:
        return endings.cancel_job(connection, job_id)


def cancel_batch(database: Database, batch_id: str) -> int:
    """Cancel all of a batch, in as many steps as it takes."""
    with database.write() as connection:
        endings.begin_cancelling(connection, batch_id)
    total = 0
    while step := _cancel_step(database, batch_id):
        total += step
    return total


def _cancel_step(database: Database, batch_id: str) -> int:
    with database.write() as connection:
        return endings.cancel_step(connection, batch_id)


def run_again(
    database: Database, batch_id: str | None = None, change: Change | None = None, **which: Any
) -> int:
    with database.write() as connection:
        return redrive.run_again(connection, Again(batch_id, **which), change)


# --- looking --------------------------------------------------------------------------------------


def job_of(database: Database, job_id: str) -> Job:
    with database.read() as connection:
        found = queries.get_job(connection, job_id)
    assert found is not None
    return found


def batch_of(database: Database, batch_id: str) -> Batch:
    with database.read() as connection:
        found = queries.get_batch(connection, batch_id)
    assert found is not None
    return found


def raw_job(database: Database, job_id: str) -> dict[str, Any]:
    with database.read() as connection:
        return dict(connection.execute(select(job).where(job.c.id == job_id)).one()._mapping)


def ledger(database: Database, job_id: str) -> list[dict[str, Any]]:
    with database.read() as connection:
        chosen = select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.fence)
        return [dict(row._mapping) for row in connection.execute(chosen)]


def count(database: Database, table: str) -> int:
    with database.read() as connection:
        found = connection.scalar(select(func.count()).select_from(batch.metadata.tables[table]))
    return found or 0


def job_ids(database: Database, batch_id: str) -> list[str]:
    """A batch's jobs in the order of the input."""
    with database.read() as connection:
        chosen = select(job.c.id).where(job.c.batch_id == batch_id).order_by(job.c.line)
        return list(connection.scalars(chosen))


def assert_counters_match_rows(database: Database, batch_id: str) -> None:
    """Check a batch's counters against its jobs' rows."""
    with database.read() as connection:
        states = queries.count_states(connection, batch_id)
        found = queries.get_batch(connection, batch_id)
    assert found is not None
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED):
        assert getattr(found, state.value) == states.get(state, 0), (state, states, found)
    assert found.total == sum(states.values())
    assert found.is_finished == (found.done == found.total)


def tokens_of(found: Batch) -> dict[str, int]:
    names = [name for name in asdict(USAGE) if name != "total_tokens"]
    return {name: getattr(found, name) for name in names}


def ids(claimed: Sequence[Claimed]) -> list[str]:
    return [one.id for one in claimed]
