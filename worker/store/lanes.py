"""Lanes: the jobs of one batch, or single ones, whose calls can go to the same places.

A limit, a pause or a broken endpoint holds a lane as a whole, so what is held is never claimed and
never in the way of what is not. A lane's head is read from an index, however long the lane is.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, or_, select

from worker.jobs.ids import lane_id
from worker.jobs.states import BatchState, State
from worker.models import batch, halt, job, lane
from worker.store.clock import from_now
from worker.store.upsert import insert_missing

SINGLES_WAIT_SECONDS: Final = 5.0
"""A single job is its own message's for this long; after that any shift may take it."""

SINGLES: Final = ""
"""Stands for the batch of the jobs that belong to none."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane, and when something in it can be claimed.

    `endpoints` is empty where the settings name them. `ready`: jobs that never waited are there.
    `due_seconds`: until the first waiting job is due (0 or less: now); None without one.
    """

    id: str
    batch_id: str
    priority: int
    model: str
    multimodal: bool
    endpoints: tuple[str, ...]
    ready: bool
    due_seconds: float | None

    @property
    def claimable(self) -> bool:
        """Whether there is something to claim now."""
        return self.ready or self.is_due

    @property
    def is_due(self) -> bool:
        """Whether a job that waited can be claimed now."""
        return self.due_seconds is not None and self.due_seconds <= 0


@dataclass(frozen=True, slots=True)
class NewLane:
    """What tells a lane from the others."""

    batch_id: str | None
    queue: str
    priority: int
    model: str
    multimodal: bool
    endpoints: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The id that such a lane always has."""
        return lane_id(
            self.batch_id, self.queue, self.priority, self.model, self.multimodal, *self.endpoints
        )


def open_lanes(connection: Connection, new: set[NewLane]) -> None:
    """Make those of the lanes that are not there yet."""
    rows = [
        {
            "id": one.id,
            "batch_id": one.batch_id,
            "queue": one.queue,
            "priority": one.priority,
            "model": one.model,
            "multimodal": one.multimodal,
            "endpoints": ",".join(one.endpoints),
        }
        for one in new
    ]
    insert_missing(connection, lane, sorted(rows, key=lambda row: str(row["id"])))


def _of(lane_alias: Any, state: State) -> Any:
    return and_(job.c.lane_id == lane_alias.c.id, job.c.state == state)


_DUE: Final = (
    select(func.min(job.c.due_at)).where(_of(lane, State.WAITING)).correlate(lane).scalar_subquery()
)
UNRUNG: Final = or_(
    job.c.created_at <= from_now(-SINGLES_WAIT_SECONDS),
    job.c.created_at > from_now(SINGLES_WAIT_SECONDS),  # the clock went back: nobody knows how old
)
"""Single jobs whose message should have been heard by now."""

_OLD_ENOUGH: Final = or_(lane.c.batch_id.is_not(None), UNRUNG)
# Not `EXISTS`, for which PostgreSQL reads the table from its start where many rows would do: there
# stand the jobs that are done.
HEAD: Final = (
    select(job.c.id)
    .where(_of(lane, State.QUEUED), _OLD_ENOUGH)
    .order_by(job.c.priority.desc(), job.c.id)
    .limit(1)
    .correlate(lane)
    .scalar_subquery()
)
"""The next job of a lane among those that never waited; null where there is none."""

_READY: Final = HEAD.is_not(None)
_SHOWN: Final = (
    lane.c.id,
    func.coalesce(lane.c.batch_id, SINGLES).label("batch_id"),
    lane.c.priority,
    lane.c.model,
    lane.c.multimodal,
    lane.c.endpoints,
    _READY.label("ready"),
    _DUE.label("due_at"),
    from_now().label("now"),
)


_NOT_HALTED: Final = lane.c.queue.not_in(select(halt.c.queue))


# Made once: to put them together takes as long as to run them.
_OF_BATCHES: Final = (
    select(*_SHOWN)
    .join(batch, batch.c.id == lane.c.batch_id)
    .where(
        batch.c.state == BatchState.IN_PROGRESS,
        batch.c.queue == bindparam("queue"),
        batch.c.halted_at.is_(None),
        or_(batch.c.expires_at.is_(None), batch.c.expires_at > from_now()),
        _NOT_HALTED,
    )
)
_OF_SINGLES: Final = select(*_SHOWN).where(
    lane.c.batch_id.is_(None), lane.c.queue == bindparam("queue"), _NOT_HALTED
)


def lanes_with_work(connection: Connection, queue: str, singles_queue: str) -> list[Lane]:
    """List the lanes of open batches and of single jobs that have, or will have, work to claim.

    What a person has paused, and what is past its deadline, has none.
    """
    rows = [
        *connection.execute(_OF_BATCHES, {"queue": queue}),
        *connection.execute(_OF_SINGLES, {"queue": singles_queue}),
    ]
    return [one for one in map(_lane, rows) if one.ready or one.due_seconds is not None]


def lane_of(connection: Connection, job_id: str) -> Lane | None:
    """Read the lane of a job that can be claimed, whether due or not; None if it cannot be."""
    claimable = select(job.c.lane_id).where(
        job.c.id == job_id, job.c.state.in_([State.QUEUED, State.WAITING])
    )
    chosen: Select[Any] = select(*_SHOWN).where(lane.c.id.in_(claimable), _NOT_HALTED)
    row = connection.execute(chosen).one_or_none()
    return None if row is None else _lane(row)


def _lane(row: Row[Any]) -> Lane:
    return Lane(
        row.id,
        row.batch_id,
        row.priority,
        row.model,
        row.multimodal,
        tuple(row.endpoints.split(",")) if row.endpoints else (),
        bool(row.ready),
        None if row.due_at is None else (row.due_at - row.now).total_seconds(),
    )
