"""Ending jobs without a call: cancelled by a person, or past their deadline. In bounded steps.

A batch is shut in one small transaction, from which on nothing of it is claimed; its jobs are ended
after that, so many at a time, by whoever shut it and by the workers' sweep.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, bindparam, select, update

from worker.jobs.states import OPEN, BatchState, State
from worker.models import batch, job, lane
from worker.store.clock import from_now
from worker.store.lost import lose_calls
from worker.store.records import finish_batches

STEP: Final = 5_000
"""The most jobs that one transaction ends: bounds the time their rows are locked."""

_UNCALLED: Final = (State.QUEUED, State.WAITING, State.HELD)
"""The open states in which no call is under way."""


def cancel_job(connection: Connection, job_id: str) -> int:
    """Cancel a job if it is open; return how many that was. Its worker sees, and cuts the call."""
    return _end(connection, [job_id], State.CANCELLED, OPEN)


def begin_cancelling(connection: Connection, batch_id: str) -> None:
    """Shut a batch: nothing of it is claimed any more."""
    connection.execute(
        update(batch)
        .where(batch.c.id == batch_id, batch.c.state == BatchState.IN_PROGRESS)
        .values(state=BatchState.CANCELLING)
    )


def cancel_calls(connection: Connection, batch_id: str) -> int:
    """Cancel the jobs of a batch whose calls are under way; return how many that was.

    To be done first: their workers cut the calls, each of which costs money as long as it lasts.
    """
    return _end_some(connection, batch_id, State.CANCELLED, (State.RUNNING,))


def cancel_step(connection: Connection, batch_id: str) -> int:
    """Cancel some open jobs of a batch that is being cancelled; 0 once there are none."""
    return _end_some(connection, batch_id, State.CANCELLED, (*_UNCALLED, State.RUNNING))


def cancelling(connection: Connection) -> list[str]:
    """List the batches that are being cancelled."""
    return list(
        connection.scalars(select(batch.c.id).where(batch.c.state == BatchState.CANCELLING))
    )


def overdue(connection: Connection) -> list[str]:
    """List the open batches whose deadline is over."""
    return list(
        connection.scalars(
            select(batch.c.id).where(
                batch.c.state == BatchState.IN_PROGRESS, batch.c.expires_at <= from_now()
            )
        )
    )


def expire_step(connection: Connection, batch_id: str) -> int:
    """Expire some jobs of an overdue batch; 0 once there are none.

    A call that is under way goes on: its answer is paid for.
    """
    return _end_some(connection, batch_id, State.EXPIRED, _UNCALLED)


# The states as literals: SQLite takes an index of some states only where it can read which.
_OVERDUE_JOBS: Final = (
    select(job.c.id)
    .where(
        job.c.expires_at.is_not(None),
        job.c.expires_at <= from_now(),
        job.c.state.in_(bindparam("states", _UNCALLED, expanding=True, literal_execute=True)),
    )
    .order_by(job.c.expires_at)
    .limit(STEP)
    .with_for_update(skip_locked=True)
)


def expire_jobs(connection: Connection) -> int:
    """Expire some jobs whose own deadline is over; 0 once there are none."""
    chosen = list(connection.scalars(_OVERDUE_JOBS))
    return _end(connection, chosen, State.EXPIRED, _UNCALLED)


def _end_some(connection: Connection, batch_id: str, to: State, out_of: Sequence[State]) -> int:
    for state in out_of:
        chosen = list(
            connection.scalars(
                select(job.c.id)
                .where(_of_batch(batch_id, state), job.c.state == state)
                .order_by(job.c.id)
                .limit(STEP)
                .with_for_update(skip_locked=True)
            )
        )
        if chosen:
            return _end(connection, chosen, to, out_of)
    return 0


def _of_batch(batch_id: str, state: State) -> ColumnElement[bool]:
    """Find a batch's jobs where there is an index of those in this state, and of no others."""
    if state in {State.QUEUED, State.WAITING}:
        return job.c.lane_id.in_(select(lane.c.id).where(lane.c.batch_id == batch_id))
    return job.c.batch_id == batch_id


def _end(connection: Connection, job_ids: Sequence[str], to: State, out_of: Any) -> int:
    """End these jobs, count them in their batches, and close the batches that this ends."""
    if not job_ids:
        return 0
    ended = connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids), job.c.state.in_(out_of))
        .values(state=to, worker_id=None, finished_at=from_now())
        .returning(job.c.batch_id)
    ).all()
    # Not left to their worker, which may be dead by now. What is answered all the same says so.
    lose_calls(connection, job_ids, "cancelled", "the call was cut off: its job was cancelled")
    counts = Counter(row.batch_id for row in ended if row.batch_id)
    for batch_id, count in sorted(counts.items()):
        column = batch.c[to.value]
        connection.execute(
            update(batch).where(batch.c.id == batch_id).values({column: column + count})
        )
    finish_batches(connection, sorted(counts))
    return len(ended)
