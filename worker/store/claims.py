"""Claiming jobs for a worker, giving them back, and taking over what a dead worker held.

A claim is one short transaction: the jobs become `running` under the worker's lease with a new
fence, and one ledger row each is written before the caller makes a call. Which lanes get how many
is the caller's decision (`worker.execution.dispatch`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, func, insert, or_, select, update

from worker.jobs.outcomes import ErrorClass
from worker.jobs.states import AttemptState, State
from worker.models import attempt, batch, job, worker
from worker.store import images
from worker.store.clock import from_now
from worker.store.lanes import SINGLES_WAIT_SECONDS, Lane
from worker.store.leases import still_held
from worker.store.records import finish_batches


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker holds: what the call needs, and the fence its record must show.

    `body` is ready to be sent: its images are in it. `age_seconds` ran from its first start to this
    claim. `reasks`: how often an answer of the wrong form may be asked for again; `followup`: the
    messages that do so, where one was.
    """

    id: str
    fence: int
    batch_id: str | None
    lane_id: str
    body: str
    model: str
    multimodal: bool
    stream: bool
    attempts: int
    diverts: int
    reasks: int = 0
    followup: str | None = None
    age_seconds: float = 0.0


EndpointOf = Callable[[Claimed], str]
"""Chooses where a claimed job's call will go, so that the ledger can say so beforehand."""

_CLAIMED: Final = (
    job.c.id,
    job.c.fence,
    job.c.batch_id,
    job.c.lane_id,
    job.c.body,
    job.c.model,
    job.c.multimodal,
    job.c.stream,
    job.c.attempts,
    job.c.diverts,
    job.c.reasks,
    job.c.followup,
    job.c.started_at,
    from_now(),
)

_POISON: Final = ("poison", "every worker that ran this job died during the call")
_OUTCOME_UNKNOWN: Final = (
    "outcome_unknown",
    "its worker ended during the call, which may have been billed: it is not made again",
)
"""Codes and messages of jobs that end without a record."""

_OPEN_CALL: Final = (AttemptState.PREPARED, AttemptState.SENT)

_PREPARE: Final = insert(attempt).values(
    job_id=bindparam("job_id"),
    fence=bindparam("fence"),
    state=AttemptState.PREPARED,
    worker_id=bindparam("worker_id"),
    endpoint=bindparam("endpoint"),
    prepared_at=from_now(),
)


def claim_lane(  # noqa: PLR0913  # what, for whom, how many, where to: a claim is all of that
    connection: Connection,
    worker_id: str,
    lane: Lane,
    limit: int,
    to: EndpointOf,
    *,
    fresh_first: bool = False,
) -> list[Claimed]:
    """Claim up to `limit` jobs of a lane: those that waited and are due, then the others.

    With `fresh_first` the other way round.
    """
    parts = [_due(lane) if lane.is_due else None, _queued(lane) if lane.ready else None]
    claimed: list[Claimed] = []
    for chosen in reversed(parts) if fresh_first else parts:
        left = limit - len(claimed)
        if chosen is not None and left:
            claimed += _claim(connection, worker_id, chosen.limit(left), to)
    return claimed


def _due(lane: Lane) -> Select[tuple[str]]:
    """The jobs that waited and are due, the longest overdue first."""
    return (
        select(job.c.id)
        .where(job.c.lane_id == lane.id, job.c.state == State.WAITING, job.c.due_at <= from_now())
        .order_by(job.c.due_at)
    )


def _queued(lane: Lane) -> Select[tuple[str]]:
    """The jobs that never waited, in the lane's order; single ones not before their time."""
    old_enough = () if lane.batch_id else (job.c.created_at <= from_now(-SINGLES_WAIT_SECONDS),)
    return (
        select(job.c.id)
        .where(job.c.lane_id == lane.id, job.c.state == State.QUEUED, *old_enough)
        .order_by(job.c.priority.desc(), job.c.id)
    )


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
    claimed = sorted((_claimed(*row) for row in connection.execute(statement)), key=lambda c: c.id)
    if claimed:
        ledger = [
            {"job_id": c.id, "fence": c.fence, "worker_id": worker_id, "endpoint": to(c)}
            for c in claimed
        ]
        connection.execute(_PREPARE, ledger)
    return _with_images(connection, claimed)


def _with_images(connection: Connection, claimed: Sequence[Claimed]) -> list[Claimed]:
    referring = [one for one in claimed if one.multimodal and images.refers(one.body)]
    if not referring:
        return list(claimed)
    bodies = images.expand(connection, [one.body for one in referring])
    whole = {one.id: body for one, body in zip(referring, bodies, strict=True)}
    return [replace(one, body=whole.get(one.id, one.body)) for one in claimed]


def _claimed(*row: Any) -> Claimed:
    *fields, started_at, now = row
    fields.append((now - started_at).total_seconds())
    return Claimed(*fields)


def rescue(
    connection: Connection, max_attempts: int, limit: int = 1_000, *, repeat: bool = True
) -> int:
    """Take jobs from workers whose lease has run out; return how many.

    Their calls become attempts of unknown outcome. A job that has used up its attempts fails as
    `poison`: it may be what killed its workers. Without `repeat` every one fails, as
    `outcome_unknown`: its call may have been billed.
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
    if repeat:
        _requeue(connection, [row.id for row in lost if row.attempts < max_attempts])
        _fail(connection, [row.id for row in lost if row.attempts >= max_attempts], *_POISON)
    else:
        _fail(connection, [row.id for row in lost], *_OUTCOME_UNKNOWN)
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


def _fail(connection: Connection, job_ids: Sequence[str], code: str, message: str) -> None:
    """Fail running jobs, count them in their batches, and close the batches that this ends."""
    failed = connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids), job.c.state == State.RUNNING)
        .values(
            state=State.FAILED,
            worker_id=None,
            finished_at=from_now(),
            error_class=ErrorClass.PERMANENT,
            error_code=code,
            error_message=message,
        )
        .returning(job.c.batch_id)
    )
    counts = Counter(row.batch_id for row in failed if row.batch_id)
    for batch_id, count in sorted(counts.items()):
        connection.execute(
            update(batch).where(batch.c.id == batch_id).values(failed=batch.c.failed + count)
        )
    finish_batches(connection, sorted(counts))


def give_back(
    connection: Connection,
    worker_id: str,
    keys: Sequence[tuple[str, int]],
    *,
    repeat: bool = True,
) -> None:
    """Return jobs, by (id, fence), whose calls a stopping worker has cut: no attempt is burnt.

    Without `repeat` they fail as `outcome_unknown`: their calls may have been billed.
    """
    if repeat:
        _return(connection, worker_id, keys)
    else:
        held = still_held(connection, worker_id)
        ours = [job_id for job_id, fence in sorted(keys) if held.get(job_id) == fence]
        _fail(connection, ours, *_OUTCOME_UNKNOWN)
    forget_calls(connection, keys, "worker_stopped", "the worker stopped before the answer came")


def _return(connection: Connection, worker_id: str, keys: Sequence[tuple[str, int]]) -> None:
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
