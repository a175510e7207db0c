"""How the queue stands, in numbers that a graph can be made of. Changes nothing.

Each is read from an index, so that a look each few seconds costs little beside a million jobs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, func, select

from worker.jobs.states import BatchState, State
from worker.models import batch, job, lane, worker
from worker.store import lanes, pauses, queries
from worker.store.clock import from_now
from worker.store.pauses import Pause

OPEN_STATES: Final = (State.QUEUED, State.WAITING, State.RUNNING, State.HELD)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is open now. Ages are in seconds; a queue with nothing to claim has none."""

    jobs: Mapping[tuple[str, State], int]
    oldest_seconds: Mapping[str, float]
    batches: Mapping[BatchState, int]
    workers: int
    unknown_outcomes: int
    pauses: tuple[Pause, ...]


def _counted(state: State) -> Select[Any]:
    """Count the jobs in a state by their lanes' queue: the index of that state knows the lane."""
    return (
        select(lane.c.queue, func.count())
        .join_from(job, lane, lane.c.id == job.c.lane_id)
        .where(job.c.state == state)
        .group_by(lane.c.queue)
    )


_COUNTS: Final = {state: _counted(state) for state in OPEN_STATES}
_BATCHES: Final = (
    select(batch.c.state, func.count())
    .where(batch.c.state.in_([BatchState.IN_PROGRESS, BatchState.CANCELLING]))
    .group_by(batch.c.state)
)
_WORKERS: Final = select(func.count()).where(worker.c.lease_until > from_now())
_HANDED_IN: Final = (
    select(
        lane.c.queue,
        func.min(func.coalesce(batch.c.created_at, job.c.created_at)).label("first"),
        from_now().label("now"),
    )
    .select_from(lane)
    .join(job, job.c.id == lanes.HEAD)
    .outerjoin(batch, batch.c.id == lane.c.batch_id)
    .group_by(lane.c.queue)
)


def read(connection: Connection) -> Gauges:
    """Read all of them."""
    jobs: dict[tuple[str, State], int] = {}
    for state, statement in _COUNTS.items():
        for queue, count in connection.execute(statement):
            jobs[queue, state] = count
    ages = {
        row.queue: max(0.0, (row.now - row.first).total_seconds())
        for row in connection.execute(_HANDED_IN)
    }
    return Gauges(
        jobs,
        ages,
        {BatchState(state): count for state, count in connection.execute(_BATCHES)},
        connection.scalar(_WORKERS) or 0,
        queries.count_unknown(connection),
        tuple(pauses.active(connection)),
    )
