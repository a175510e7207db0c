"""Leases: one row per worker process, whose lease is that of every job it holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, exists, insert, select, update

from worker.jobs.ids import new_id
from worker.jobs.states import State
from worker.models import job, worker
from worker.store.clock import from_now


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
        update(worker)
        .where(worker.c.id.in_(list(worker_ids)))
        .values(lease_until=from_now(), stopped_at=from_now())
    )


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of a worker that holds jobs: when its lease ends, and what that says.

    `lapsed`: the lease has run out, by the database's clock. `stopped`: the worker said that it
    stops, or was found dead for certain.
    """

    worker_id: str
    lease_until: datetime
    lapsed: bool
    stopped: bool


def signs_of_others(connection: Connection, worker_id: str) -> list[Sign]:
    """Read the signs of all other workers that hold jobs."""
    holds = exists().where(job.c.worker_id == worker.c.id, job.c.state == State.RUNNING)
    rows = connection.execute(
        select(
            worker.c.id,
            worker.c.lease_until,
            worker.c.lease_until < from_now(),
            worker.c.stopped_at.is_not(None),
        ).where(worker.c.id != worker_id, holds)
    )
    return [Sign(row[0], row[1], bool(row[2]), bool(row[3])) for row in rows]


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
