"""Claiming jobs for a worker.

A claim is one short transaction: the jobs become `running` under the worker's lease with a new
fence, and one ledger row each is written before the caller makes a call. Which lanes get how many
is the caller's decision (`worker.execution.dispatch`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Select, func, or_, select, update

from worker.jobs.states import AttemptState, State
from worker.models import attempt, job
from worker.store import images
from worker.store.clock import from_now
from worker.store.intake import insert_many
from worker.store.lanes import UNRUNG, Lane


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job this worker holds: what the call needs, and the fence its record must show.

    `body` is ready to be sent: its images are in it. `reasks`: how often an answer of the wrong
    form may be asked for again; `followup`: the messages that do so, where one was. `revision`
    counts the changes of what is asked; `unknown_outcome` is the job's own policy, if it has one.
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
    revision: int = 0
    unknown_outcome: str | None = None


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
    job.c.revision,
    job.c.unknown_outcome,
)

_IN_TIME: Final = or_(job.c.expires_at.is_(None), job.c.expires_at > from_now())


def claim_lane(  # noqa: PLR0913  # what, for whom, how many, where to: a claim is all of that
    connection: Connection,
    worker_id: str,
    lane: Lane,
    limit: int,
    to: EndpointOf,
    *,
    fresh_first: bool = False,
    deadline_seconds: float = 0.0,
) -> list[Claimed]:
    """Claim up to `limit` jobs of a lane: those that waited and are due, then the others.

    With `fresh_first` the other way round. `deadline_seconds` is how long a job that has no
    deadline of its own may take from now, if this is its first start; 0: for ever.
    """
    parts = [_due(lane) if lane.is_due else None, _queued(lane) if lane.ready else None]
    claimed: list[Claimed] = []
    for chosen in reversed(parts) if fresh_first else parts:
        left = limit - len(claimed)
        if chosen is not None and left:
            claimed += _claim(connection, worker_id, chosen.limit(left), to, deadline_seconds)
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
    old_enough = () if lane.batch_id else (UNRUNG,)
    return (
        select(job.c.id)
        .where(job.c.lane_id == lane.id, job.c.state == State.QUEUED, *old_enough)
        .order_by(job.c.priority.desc(), job.c.id)
    )


def claim_one(
    connection: Connection,
    worker_id: str,
    job_id: str,
    to: EndpointOf,
    *,
    deadline_seconds: float = 0.0,
) -> Claimed | None:
    """Claim one job by its id, whether due or not; None when it is not there to be claimed."""
    chosen = select(job.c.id).where(
        job.c.id == job_id, job.c.state.in_([State.QUEUED, State.WAITING])
    )
    return next(iter(_claim(connection, worker_id, chosen, to, deadline_seconds)), None)


def _claim(
    connection: Connection,
    worker_id: str,
    chosen: Select[tuple[str]],
    to: EndpointOf,
    deadline_seconds: float,
) -> list[Claimed]:
    deadline = (
        {"expires_at": func.coalesce(job.c.expires_at, from_now(deadline_seconds))}
        if deadline_seconds
        else {}
    )
    # Apart, so that it is run once: PostgreSQL may run what stands in an IN again for each row, and
    # each time find others, past the limit.
    ours = chosen.where(_IN_TIME).with_for_update(skip_locked=True).cte("ours")
    statement = (
        update(job)
        .where(
            job.c.id.in_(select(ours.c.id)),
            job.c.state.in_([State.QUEUED, State.WAITING]),
        )
        .values(
            state=State.RUNNING,
            worker_id=worker_id,
            due_at=None,
            fence=job.c.fence + 1,
            attempts=job.c.attempts + 1,
            started_at=func.coalesce(job.c.started_at, from_now()),
            **deadline,
        )
        .returning(*_CLAIMED, from_now())
    )
    rows = connection.execute(statement).all()
    if not rows:
        return []
    claimed = sorted((Claimed(*row[:-1]) for row in rows), key=lambda c: c.id)
    _prepare(connection, worker_id, claimed, to, rows[0][-1])
    return _with_images(connection, claimed)


def _prepare(
    connection: Connection,
    worker_id: str,
    claimed: Sequence[Claimed],
    to: EndpointOf,
    now: datetime,
) -> None:
    """Write the calls that are about to be made into the ledger."""
    ledger = [
        {
            "job_id": c.id,
            "fence": c.fence,
            "state": AttemptState.PREPARED.value,
            "worker_id": worker_id,
            "endpoint": to(c),
            "prepared_at": now,
        }
        for c in claimed
    ]
    insert_many(connection, attempt, ledger)


def _with_images(connection: Connection, claimed: Sequence[Claimed]) -> list[Claimed]:
    referring = [one for one in claimed if one.multimodal and images.refers(one.body)]
    if not referring:
        return list(claimed)
    bodies = images.expand(connection, [one.body for one in referring])
    whole = {one.id: body for one, body in zip(referring, bodies, strict=True)}
    return [replace(one, body=whole.get(one.id, one.body)) for one in claimed]
