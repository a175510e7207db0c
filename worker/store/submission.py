"""Storing new jobs: a single one, or a batch by chunks.

A batch stays `validating`, unseen by claims and listings, until `open_batch`; so a submission is
all or nothing however long it takes, and holds no lock while it lasts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from worker.errors import NotFoundError
from worker.jobs.ids import new_id
from worker.jobs.images import Image
from worker.jobs.options import NO_OPTIONS, JobOptions
from worker.jobs.states import BatchState, State
from worker.models import attempt, batch, file, job, lane, tool_call
from worker.settings import UnknownOutcome
from worker.store import images
from worker.store.clock import from_now
from worker.store.engine import ConflictError, Database
from worker.store.intake import insert_many
from worker.store.lanes import NewLane, open_lanes

DROP_CHUNK: Final = 1_000

ABANDONED_SECONDS: Final = 6 * 3600.0
"""A submission that has taken so long is taken for dead, and what it stored is removed."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A checked request, ready to be stored. `body` is its JSON text, verbatim.

    `endpoints` are the base URLs it may be sent to, none for those of the settings; `reasks` is how
    often it may be asked again for an answer that matches its schema. It expires so many seconds
    after it was stored, None: with its batch. `unknown_outcome`: None for that of the settings.
    """

    line: int
    custom_id: str
    body: str
    model: str
    multimodal: bool
    stream: bool
    endpoints: tuple[str, ...] = ()
    reasks: int = 0
    expires_seconds: float | None = None
    unknown_outcome: UnknownOutcome | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch about to be filled. `key` is unique: a second batch with it cannot be made.

    `options` hold for its jobs where their lines have none of their own; `expires_seconds` among
    them is the deadline of the batch, from the moment it opens, whatever its lines say.
    """

    name: str
    queue: str
    priority: int = 0
    key: str | None = None
    options: JobOptions = NO_OPTIONS


def create_batch(connection: Connection, new: NewBatch) -> str:
    """Write a batch that nobody sees yet; return its id."""
    batch_id = new_id("batch")
    connection.execute(
        insert(batch).values(
            id=batch_id,
            name=new.name,
            queue=new.queue,
            priority=new.priority,
            state=BatchState.VALIDATING,
            created_at=datetime.now(UTC),
        )
    )
    return batch_id


def add_jobs(
    database: Database,
    batch_id: str,
    new: NewBatch,
    jobs: Sequence[NewJob],
    pictures: Sequence[Image] = (),
) -> dict[str, int]:
    """Store a chunk of a batch's jobs, and with them the images that they refer to.

    Returns the custom_ids that the batch already had, with the line that has them; where there
    are any, nothing of the chunk is stored. Raises DatabaseError, RefusedError.
    """
    try:
        with database.write() as connection:
            images.put(connection, pictures)
            insert_jobs(connection, batch_id, new, jobs)
    except ConflictError:
        taken = _taken(database, batch_id, [one.custom_id for one in jobs])
        if not taken:
            raise
        return taken
    return {}


def insert_jobs(
    connection: Connection, batch_id: str | None, new: NewBatch, jobs: Iterable[NewJob]
) -> list[str]:
    """Store jobs, queued, in their lanes; return their ids in order."""
    jobs = list(jobs)
    lanes = {
        kind: NewLane(batch_id, new.queue, new.priority, *kind) for kind in set(map(_kind, jobs))
    }
    lane_ids = {kind: one.id for kind, one in lanes.items()}
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [
        {
            "id": new_id("job"),
            "batch_id": batch_id,
            "lane_id": lane_ids[_kind(one)],
            "line": one.line,
            "custom_id": one.custom_id,
            "queue": new.queue,
            "priority": new.priority,
            "body": one.body,
            "model": one.model,
            "multimodal": one.multimodal,
            "stream": one.stream,
            "state": State.QUEUED.value,
            "created_at": now,
            "reasks": one.reasks,
            "reasks_allowed": one.reasks,
            "expires_at": None,
            "unknown_outcome": one.unknown_outcome,
        }
        for one in jobs
    ]
    _set_deadlines(connection, jobs, rows)
    open_lanes(connection, set(lanes.values()))
    insert_many(connection, job, rows)
    return [row["id"] for row in rows]


def _set_deadlines(
    connection: Connection, jobs: Sequence[NewJob], rows: Sequence[dict[str, Any]]
) -> None:
    """Give the jobs that expire their time, by the database's clock."""
    if all(one.expires_seconds is None for one in jobs):
        return
    now = connection.execute(select(from_now())).scalar_one()
    for one, row in zip(jobs, rows, strict=True):
        if one.expires_seconds is not None:
            row["expires_at"] = now + timedelta(seconds=one.expires_seconds)


def _kind(one: NewJob) -> tuple[str, bool, tuple[str, ...]]:
    """What a job's lane is chosen by, besides its batch."""
    return one.model, one.multimodal, one.endpoints


def _taken(database: Database, batch_id: str, custom_ids: Sequence[str]) -> dict[str, int]:
    with database.read() as connection:
        rows = connection.execute(
            select(job.c.custom_id, job.c.line).where(
                job.c.batch_id == batch_id, job.c.custom_id.in_(custom_ids)
            )
        )
        return {row.custom_id: row.line for row in rows}


@dataclass(frozen=True, slots=True)
class InputFile:
    """What a batch was read from."""

    name: str
    size_bytes: int
    lines: int
    sha256: str


def open_batch(  # noqa: PLR0913  # what is known of it only once it was read
    connection: Connection,
    batch_id: str,
    total: int,
    source: InputFile | None,
    key: str | None,
    *,
    expires_seconds: float | None = None,
) -> None:
    """Show the batch: its jobs can be claimed. An empty one is finished at once.

    Raises ConflictError (at the end of the transaction at the latest) where another batch has
    taken the key meanwhile, NotFoundError where the batch was dropped.
    """
    file_id = None if source is None else _write_file(connection, source)
    done = total == 0
    opened = connection.execute(
        update(batch)
        .where(batch.c.id == batch_id, batch.c.state == BatchState.VALIDATING)
        .values(
            state=BatchState.COMPLETED if done else BatchState.IN_PROGRESS,
            total=total,
            key=key,
            input_file_id=file_id,
            in_progress_at=from_now(),
            expires_at=None if expires_seconds is None else from_now(expires_seconds),
            finished_at=from_now() if done else None,
        )
    )
    if not opened.rowcount:
        raise NotFoundError(f"{batch_id} was removed while it was being submitted")


def _write_file(connection: Connection, source: InputFile) -> str:
    file_id = new_id("file")
    connection.execute(
        insert(file).values(
            id=file_id,
            name=source.name,
            bytes=source.size_bytes,
            lines=source.lines,
            sha256=source.sha256,
            created_at=datetime.now(UTC),
        )
    )
    return file_id


def batch_with_key(connection: Connection, key: str) -> str | None:
    """Return the id of the batch that was submitted under this key."""
    return connection.scalar(select(batch.c.id).where(batch.c.key == key))


def release_key(connection: Connection, key: str) -> None:
    """Let a later submission use this key: the batch that has it keeps everything else."""
    connection.execute(update(batch).where(batch.c.key == key).values(key=None))


@dataclass(frozen=True, slots=True)
class Dropped:
    """What one step removed. `is_last`: nothing of the batch is left."""

    jobs: int = 0
    calls: int = 0
    batches: int = 0
    is_last: bool = True


def drop_batch(database: Database, batch_id: str) -> None:
    """Remove a batch that nobody sees, in steps that hold the database only briefly.

    One that was opened is left as it is.
    """
    while True:
        with database.write() as connection:
            if drop_step(connection, batch_id).is_last:
                return


def drop_step(connection: Connection, batch_id: str) -> Dropped:
    """Remove some of the jobs of a batch that nobody sees; with the last of them the batch.

    What is `validating` is shown nowhere, so a removal that ends half-way leaves nothing odd to be
    seen, and whoever comes next goes on with it.
    """
    # Locked, because of two who remove it at once one could find no job left that it may remove.
    unseen = connection.execute(
        select(batch.c.input_file_id)
        .where(batch.c.id == batch_id, batch.c.state == BatchState.VALIDATING)
        .with_for_update()
    ).one_or_none()
    if unseen is None:
        return Dropped()
    ids = connection.scalars(
        select(job.c.id).where(job.c.batch_id == batch_id).order_by(job.c.id).limit(DROP_CHUNK)
    ).all()
    calls = drop_jobs(connection, ids)
    if len(ids) == DROP_CHUNK:
        return Dropped(len(ids), calls, is_last=False)
    connection.execute(delete(lane).where(lane.c.batch_id == batch_id))
    connection.execute(delete(batch).where(batch.c.id == batch_id))
    connection.execute(delete(file).where(file.c.id == unseen.input_file_id))
    return Dropped(len(ids), calls, batches=1)


def drop_jobs(connection: Connection, ids: Sequence[str]) -> int:
    """Remove jobs with all that hangs on them; return how many calls the ledger had of them."""
    connection.execute(delete(tool_call).where(tool_call.c.job_id.in_(ids)))
    calls = connection.execute(delete(attempt).where(attempt.c.job_id.in_(ids))).rowcount
    connection.execute(delete(job).where(job.c.id.in_(ids)))
    return calls


def abandoned_batches(
    connection: Connection, older_than_seconds: float = ABANDONED_SECONDS
) -> list[str]:
    """List the batches whose submission died before it opened them."""
    rows = connection.execute(
        select(batch.c.id).where(
            batch.c.state == BatchState.VALIDATING,
            batch.c.created_at < from_now(-older_than_seconds),
        )
    )
    return [row.id for row in rows]
