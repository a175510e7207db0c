"""Halts: batches and queues that a person has paused. Nothing of them is claimed.

Calls under way go on. (What is paused because a key was refused is in `worker.store.pauses`.)
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from worker.models import batch, halt
from worker.store.clock import from_now
from worker.store.upsert import insert_missing


@dataclass(frozen=True, slots=True)
class Halt:
    """A queue that is paused, and since when."""

    queue: str
    since: datetime


def halt_batch(connection: Connection, batch_id: str) -> None:
    """Pause a batch; one that is paused stays so."""
    connection.execute(
        update(batch)
        .where(batch.c.id == batch_id, batch.c.halted_at.is_(None))
        .values(halted_at=from_now())
    )


def free_batch(connection: Connection, batch_id: str) -> bool:
    """Let a batch go on; return whether it was paused."""
    freed = connection.execute(
        update(batch)
        .where(batch.c.id == batch_id, batch.c.halted_at.is_not(None))
        .values(halted_at=None)
    )
    return freed.rowcount == 1


def halt_queue(connection: Connection, queue: str) -> None:
    """Pause a queue; one that is paused stays so."""
    now = connection.scalar(select(from_now()))
    insert_missing(connection, halt, [{"queue": queue, "since": now}])


def free_queue(connection: Connection, queue: str) -> bool:
    """Let a queue go on; return whether it was paused."""
    return connection.execute(delete(halt).where(halt.c.queue == queue)).rowcount == 1


def halted_queues(connection: Connection) -> list[Halt]:
    """List the queues that are paused."""
    return [Halt(*row) for row in connection.execute(select(halt).order_by(halt.c.queue))]
