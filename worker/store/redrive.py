"""Running jobs again because a person says so: the only way out of a final state.

Their attempts stay on the books; their count of attempts and their time begin anew.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    null,
    or_,
    select,
    update,
)

from worker.jobs.states import BatchState, State
from worker.models import batch, job, lane, tool_call
from worker.store.clock import from_now
from worker.store.lanes import NewLane, open_lanes
from worker.store.records import OUTCOME_COLUMNS

PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Again:
    """Which jobs to run again: the failed and expired ones of a batch, or one job.

    `errors`: only those that ended with one of these codes or classes (none: whatever it was). One
    job by its id may be a cancelled one, too.
    """

    batch_id: str | None = None
    job_id: str | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """What a job is to ask in place of what it asked before."""

    body: str
    model: str
    stream: bool


Change = Callable[[str, int, str], Changed]
"""Makes the new request of a job's body, line and custom_id. Raises InvalidRequestsError."""


def run_again(connection: Connection, which: Again, change: Change | None = None) -> int:
    """Put finished jobs back in their queues, with a changed request if asked; return how many.

    All of them or, where `change` raises, none. Jobs whose contents were purged are left as they
    are: there is nothing to ask any more.
    """
    if which.batch_id is not None:
        # Two of these at once would both count the same jobs: one waits here for the other.
        connection.execute(select(batch.c.id).where(batch.c.id == which.batch_id).with_for_update())
    counts: Counter[tuple[str | None, State]] = Counter()
    last = ""
    while True:
        rows = connection.execute(
            select(
                job.c.id,
                job.c.batch_id,
                job.c.state,
                job.c.body,
                job.c.line,
                job.c.custom_id,
                job.c.lane_id,
            )
            .where(*_chosen(which), job.c.id > last)
            .order_by(job.c.id)
            .limit(PAGE)
            .with_for_update()
        ).all()
        if not rows:
            break
        last = rows[-1].id
        counts.update((row.batch_id, State(row.state)) for row in rows)
        if change is not None:
            changes = {row.id: change(row.body, row.line, row.custom_id) for row in rows}
            _rewrite(connection, changes, {row.id: row.lane_id for row in rows})
        _requeue(connection, [row.id for row in rows])
    _reopen(connection, counts)
    return counts.total()


def _chosen(which: Again) -> list[ColumnElement[bool]]:
    states = [State.FAILED, State.EXPIRED]
    if which.job_id is not None:
        chosen = [job.c.id == which.job_id, job.c.state.in_([*states, State.CANCELLED])]
    else:
        chosen = [job.c.batch_id == which.batch_id, job.c.state.in_(states)]
    if which.errors:
        said = (job.c.error_code.in_(which.errors), job.c.error_class.in_(which.errors))
        chosen.append(or_(*said))
    return [*chosen, job.c.body != ""]


def _rewrite(connection: Connection, changes: dict[str, Changed], lanes: dict[str, str]) -> None:
    """Write the new requests, and move the jobs to the lanes of their models."""
    moved = _lanes_of(connection, set(lanes.values()), {one.model for one in changes.values()})
    connection.execute(
        update(job)
        .where(job.c.id == bindparam("b_id"))
        .values(
            body=bindparam("b_body"),
            model=bindparam("b_model"),
            stream=bindparam("b_stream"),
            lane_id=bindparam("b_lane"),
            revision=job.c.revision + 1,
        ),
        [
            {
                "b_id": job_id,
                "b_body": one.body,
                "b_model": one.model,
                "b_stream": one.stream,
                "b_lane": moved[lanes[job_id], one.model],
            }
            for job_id, one in changes.items()
        ],
    )


def _lanes_of(
    connection: Connection, lane_ids: set[str], models: set[str]
) -> dict[tuple[str, str], str]:
    """Open the lanes that are as these, but for their models; map (lane, model) to their ids."""
    rows = connection.execute(select(lane).where(lane.c.id.in_(lane_ids))).all()
    made = {
        (row.id, model): NewLane(
            row.batch_id,
            row.queue,
            row.priority,
            model,
            row.multimodal,
            tuple(row.endpoints.split(",")) if row.endpoints else (),
        )
        for row in rows
        for model in models
    }
    open_lanes(connection, set(made.values()))
    return {key: one.id for key, one in made.items()}


def _requeue(connection: Connection, job_ids: Sequence[str]) -> None:
    connection.execute(delete(tool_call).where(tool_call.c.job_id.in_(job_ids)))
    connection.execute(
        update(job)
        .where(job.c.id.in_(job_ids))
        .values(
            state=State.QUEUED,
            attempts=0,
            # What was asked again under a key must not be asked differently under the same one.
            revision=job.c.revision + case((job.c.reasks != job.c.reasks_allowed, 1), else_=0),
            reasks=job.c.reasks_allowed,
            followup=None,
            started_at=None,
            finished_at=None,
            expires_at=None,
            **dict.fromkeys(OUTCOME_COLUMNS),
        )
    )


def _reopen(connection: Connection, counts: Counter[tuple[str | None, State]]) -> None:
    """Take the jobs out of their batches' counts; a deadline that is over ends no more."""
    batches = {batch_id for batch_id, _ in counts if batch_id is not None}
    for batch_id in sorted(batches):
        less = {
            column: column - counts[batch_id, state]
            for state in (State.FAILED, State.EXPIRED, State.CANCELLED)
            for column in (batch.c[state.value],)
        }
        connection.execute(
            update(batch)
            .where(batch.c.id == batch_id)
            .values(
                {
                    **less,
                    batch.c.state: BatchState.IN_PROGRESS,
                    batch.c.expires_at: case(
                        (batch.c.expires_at <= from_now(), null()), else_=batch.c.expires_at
                    ),
                    batch.c.finished_at: None,
                    batch.c.reported_at: None,
                    batch.c.redrives: batch.c.redrives + 1,
                }
            )
        )
