"""Claiming jobs for a worker, giving them back, and taking over what a dead worker held.

A claim is one short transaction: the jobs become `running` under the worker's lease with a new
fence, and one ledger row each is written before the caller makes a call. Which lanes get how many
is the caller's decision (`worker.execution.fairness`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from worker.jobs.ids import new_id
from worker.jobs.states import AttemptState, BatchState, State
from worker.models import attempt, batch, job, worker
from worker.store.clock import from_now
from worker.store.records import finish_batches

SINGLES: Final = ""
"""The lane of the jobs that belong to no batch."""

SINGLES_WAIT_SECONDS: Final = 5.0
"""A single job is its own message's for this long; after that any shift may take it."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A batch (or the single jobs) with work that could be claimed now."""

    key: str
    priority: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker holds: what the call needs, and the fence its record must show."""

    id: str
    fence: int
    batch_id: str | None
    body: str
    model: str
    multimodal: bool
    stream: bool
    attempts: int
    diverts: int


EndpointOf = Callable[[Claimed], str]
"""Chooses where a claimed job's call will go, so that the ledger can say so beforehand."""

_CLAIMED: Final = (
    job.c.id,
    job.c.fence,
    job.c.batch_id,
    job.c.body,
    job.c.model,
    job.c.multimodal,
    job.c.stream,
    job.c.attempts,
    job.c.diverts,
)

_OPEN_CALL: Final = (AttemptState.PREPARED, AttemptState.SENT)

_PREPARE: Final = insert(attempt).values(
    job_id=bindparam("job_id"),
    fence=bindparam("fence"),
    state=AttemptState.PREPARED,
    worker_id=bindparam("worker_id"),
    endpoint=bindparam("endpoint"),
    prepared_at=from_now(),
)


def _is_ready_single(queue: str) -> object:
    return and_(
        job.c.batch_id.is_(None),
        job.c.queue == queue,
        job.c.state == State.QUEUED,
        job.c.created_at <= from_now(-SINGLES_WAIT_SECONDS),
    )


def open_lanes(connection: Connection, queue: str, singles_queue: str) -> list[Lane]:
    """List the lanes with ready jobs, highest priority first."""
    ready = exists().where(job.c.batch_id == batch.c.id, job.c.state == State.QUEUED)
    open_batches = select(batch.c.id, batch.c.priority).where(
        batch.c.state == BatchState.IN_PROGRESS, batch.c.queue == queue, ready
    )
    singles = select(literal(SINGLES), literal(0)).where(
        exists().where(_is_ready_single(singles_queue))  # type: ignore[arg-type]
    )
    rows = connection.execute(open_batches.union_all(singles))
    return sorted((Lane(*row) for row in rows), key=lambda lane: (-lane.priority, lane.key))


def has_work(connection: Connection, queue: str, singles_queue: str) -> bool:
    """Whether any job could be claimed now."""
    if open_lanes(connection, queue, singles_queue):
        return True
    due = seconds_until_due(connection)
    return due is not None and due <= 0


def seconds_until_due(connection: Connection) -> float | None:
    """Return the seconds until the next waiting job is due (0 or less: now), None without one."""
    due = select(func.min(job.c.due_at)).where(job.c.state == State.WAITING).scalar_subquery()
    row = connection.execute(select(due, from_now())).one()
    return None if row[0] is None else float((row[0] - row[1]).total_seconds())


def claim_due(connection: Connection, worker_id: str, limit: int, to: EndpointOf) -> list[Claimed]:
    """Claim up to `limit` waiting jobs whose time has come, the longest overdue first."""
    held = exists().where(batch.c.id == job.c.batch_id, batch.c.state != BatchState.IN_PROGRESS)
    chosen = (
        select(job.c.id)
        .where(job.c.state == State.WAITING, job.c.due_at <= from_now(), ~held)
        .order_by(job.c.due_at)
        .limit(limit)
    )
    return _claim(connection, worker_id, chosen, to)


def claim_lanes(
    connection: Connection,
    worker_id: str,
    shares: Mapping[str, int],
    singles_queue: str,
    to: EndpointOf,
) -> list[Claimed]:
    """Claim up to `shares[lane]` ready jobs of each lane, in their lane's order."""
    claimed: list[Claimed] = []
    for lane, share in sorted(shares.items()):
        if lane == SINGLES:
            ready = _is_ready_single(singles_queue)
        else:
            ready = and_(job.c.batch_id == lane, job.c.state == State.QUEUED)
        chosen = (
            select(job.c.id)
            .where(ready)  # type: ignore[arg-type]
            .order_by(job.c.priority.desc(), job.c.id)
            .limit(share)
        )
        claimed += _claim(connection, worker_id, chosen, to)
    return claimed


def claim_one(
    connection: Connection, worker_id: str, job_id: str, to: EndpointOf
) -> Claimed | None:
    """Claim one job by its id, whether due or not; None when it is not there to be claimed."""
    chosen = select(job.c.id).where(
        job.c.id == job_id, job.c.state.in_([State.QUEUED, State.WAITING])
    )
    return next(iter(_claim(connection, worker_id, chosen, to)), None)


def _claim(
    connection: Connection, worker_id: str, chosen: Select[tuple[str]], to: EndpointOf
) -> list[Claimed]:
    statement = (
        update(job)
        .where(
            job.c.id.in_(chosen.with_for_update(skip_locked=True)),
            job.c.state.in_([State.QUEUED, State.WAITING]),
        )
        .values(
            state=State.RUNNING,
            worker_id=worker_id,
            due_at=None,
            fence=job.c.fence + 1,
            attempts=job.c.attempts + 1,
            started_at=func.coalesce(job.c.started_at, from_now()),
        )
        .returning(*_CLAIMED)
    )
    claimed = sorted((Claimed(*row) for row in connection.execute(statement)), key=lambda c: c.id)
    if claimed:
        ledger = [
            {"job_id": c.id, "fence": c.fence, "worker_id": worker_id, "endpoint": to(c)}
            for c in claimed
        ]
        connection.execute(_PREPARE, ledger)
    return claimed


def register_worker(
    connection: Connection, *, name: str, host: str, pid: int, lease_seconds: float
) -> str:
    """Write a worker's row and return its id: its lease begins."""
    worker_id = new_id("worker")
    values = {"id": worker_id, "name": name, "host": host, "pid": pid}
    connection.execute(
        insert(worker).values(**values, started_at=from_now(), lease_until=from_now(lease_seconds))
    )
    return worker_id


def heartbeat(connection: Connection, worker_id: str, lease_seconds: float) -> None:
    """Renew the lease of everything this worker holds."""
    connection.execute(
        update(worker)
        .where(worker.c.id == worker_id)
        .values(lease_until=from_now(lease_seconds), stopped_at=None)
    )


def retire_worker(connection: Connection, worker_id: str) -> None:
    """End a worker's lease now: it has stopped."""
    connection.execute(
        update(worker)
        .where(worker.c.id == worker_id)
        .values(lease_until=from_now(), stopped_at=from_now())
    )


def still_held(connection: Connection, worker_id: str) -> dict[str, int]:
    """Map each job this worker still holds to its fence: what is missing was taken or cancelled."""
    held = select(job.c.id, job.c.fence).where(
        job.c.worker_id == worker_id, job.c.state == State.RUNNING
    )
    return {row.id: row.fence for row in connection.execute(held)}


def end_leases(connection: Connection, worker_ids: Iterable[str]) -> None:
    """End the leases of workers known to be dead, so that their jobs are taken over at once."""
    connection.execute(
        update(worker).where(worker.c.id.in_(list(worker_ids))).values(lease_until=from_now())
    )


@dataclass(frozen=True, slots=True)
class Leased:
    """A worker process that holds a lease."""

    worker_id: str
    pid: int
    started_at: datetime


def leased_on(connection: Connection, host: str) -> list[Leased]:
    """List the workers of a host that hold a lease."""
    rows = connection.execute(
        select(worker.c.id, worker.c.pid, worker.c.started_at).where(
            worker.c.host == host, worker.c.lease_until > from_now()
        )
    )
    return [Leased(*row) for row in rows]


def rescue(connection: Connection, max_attempts: int, limit: int = 1_000) -> int:
    """Take jobs from workers whose lease has run out; return how many.

    Their calls become attempts of unknown outcome. A job that has used up its attempts fails as
    `poison`: it may be what killed its workers.
    """
    dead = select(worker.c.id).where(worker.c.lease_until < from_now())
    lost = connection.execute(
        select(job.c.id, job.c.fence, job.c.attempts, job.c.batch_id)
        .where(job.c.state == State.RUNNING, job.c.worker_id.in_(dead))
        .order_by(job.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not lost:
        return 0
    _lose_calls(connection, [row.id for row in lost])
    poisoned = [row for row in lost if row.attempts >= max_attempts]
    _requeue(connection, [row.id for row in lost if row.attempts < max_attempts])
    _poison(connection, [row.id for row in poisoned])
    batch_ids = sorted({row.batch_id for row in poisoned if row.batch_id})
    for batch_id in batch_ids:
        count = sum(row.batch_id == batch_id for row in poisoned)
        connection.execute(
            update(batch).where(batch.c.id == batch_id).values(failed=batch.c.failed + count)
        )
    finish_batches(connection, batch_ids)
    return len(lost)


def _lose_calls(connection: Connection, job_ids: Sequence[str]) -> None:
    """Mark the open calls of these jobs: made or not, billed or not, nobody can say any more."""
    connection.execute(
        update(attempt)
        .where(attempt.c.job_id.in_(job_ids), attempt.c.state.in_(_OPEN_CALL))
        .values(
            state=AttemptState.UNKNOWN,
            answered_at=from_now(),
            maybe_billed=True,
            error_code="worker_lost",
            error_message="the worker died during the call; its outcome is unknown",
        )
    )


def forget_calls(
    connection: Connection, keys: Sequence[tuple[str, int]], code: str, message: str
) -> None:
    """Mark calls, by (job id, fence), that were cut off here: they may have been billed."""
    connection.execute(
        update(attempt)
        .where(
            attempt.c.job_id == bindparam("b_id"),
            attempt.c.fence == bindparam("b_fence"),
            or_(*(attempt.c.state == state for state in _OPEN_CALL)),  # many rows take no IN
        )
        .values(
            state=AttemptState.UNKNOWN,
            answered_at=from_now(),
            maybe_billed=True,
            error_code=code,
            error_message=message,
        ),
        [{"b_id": job_id, "b_fence": fence} for job_id, fence in sorted(keys)],
    )


def _requeue(connection: Connection, job_ids: Sequence[str]) -> None:
    connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids), job.c.state == State.RUNNING)
        .values(state=State.QUEUED, worker_id=None)
    )


def _poison(connection: Connection, job_ids: Sequence[str]) -> None:
    connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids), job.c.state == State.RUNNING)
        .values(
            state=State.FAILED,
            worker_id=None,
            finished_at=from_now(),
            error_class="permanent",
            error_code="poison",
            error_message="every worker that ran this job died during the call",
        )
    )


def give_back(connection: Connection, worker_id: str, keys: Sequence[tuple[str, int]]) -> None:
    """Return jobs, by (id, fence), whose calls a stopping worker has cut: no attempt is burnt."""
    connection.execute(
        update(job)
        .where(
            job.c.id == bindparam("b_id"),
            job.c.fence == bindparam("b_fence"),
            job.c.worker_id == worker_id,
        )
        .values(state=State.QUEUED, worker_id=None, attempts=job.c.attempts - 1),
        [{"b_id": job_id, "b_fence": fence} for job_id, fence in sorted(keys)],
    )
    forget_calls(connection, keys, "worker_stopped", "the worker stopped before the answer came")
