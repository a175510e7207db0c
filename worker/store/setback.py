"""A database's clock that went back: what was put off until a time that is now far ahead.

Leases are told by signs of life (`worker.execution.upkeep`), not by the clock alone. But a job that
waits and a key that is paused would do so for as long as the clock has gone back. That they were
put off at a moment that has not come yet tells them.
"""

from typing import Final

from sqlalchemy import Connection, select, update

from worker.jobs.states import State
from worker.models import attempt, job, pause, worker
from worker.store.clock import from_now

TOLERANCE_SECONDS: Final = 2.0
"""Clocks that are set right by so little strand nothing."""

STEP: Final = 5_000


def is_seen(connection: Connection, worker_id: str, lease_seconds: float) -> bool:
    """Whether this worker's lease, renewed a moment ago, ends later than one that begins now."""
    ends_late = select(worker.c.id).where(
        worker.c.id == worker_id, worker.c.lease_until > from_now(lease_seconds + TOLERANCE_SECONDS)
    )
    return connection.scalar(ends_late) is not None


def mend_step(connection: Connection) -> int:
    """Let some of what was put off in the future go on now; 0 once there is none."""
    ahead = from_now(TOLERANCE_SECONDS)
    put_off_ahead = (
        select(attempt.c.job_id)
        .where(
            attempt.c.job_id == job.c.id,
            attempt.c.fence == job.c.fence,
            attempt.c.answered_at > ahead,
        )
        .exists()
    )
    ours = (
        select(job.c.id)
        .where(job.c.state == State.WAITING, job.c.due_at > from_now(), put_off_ahead)
        .limit(STEP)
        .with_for_update(skip_locked=True)
        .cte("ours")  # run once, as in a claim
    )
    jobs = connection.execute(
        update(job)
        .where(job.c.id.in_(select(ours.c.id)), job.c.state == State.WAITING)
        .values(due_at=from_now())
        .returning(job.c.id)
    ).all()
    pauses = connection.execute(
        update(pause).where(pause.c.since > ahead).values(since=from_now(), probe_at=from_now())
    )
    return len(jobs) + pauses.rowcount
