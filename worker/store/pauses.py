"""Pauses of keys: a key that was refused, or whose balance is empty, is used by probes only.

Keys are known here by their fingerprints. A pause is begun in the transaction that records the
refusal, so that the refused job is not claimed again in between.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, delete, select, update

from worker.models import attempt, pause
from worker.store.clock import from_now
from worker.store.upsert import insert_or_update

FIRST_PROBE_SECONDS: Final = 15.0
_DOUBLINGS: Final = 4  # to four minutes
PROBE_LEASE_SECONDS: Final = 60.0
"""A probe that has told nothing for so long has died: another one may go."""

AGAIN_SECONDS: Final = 1.0
"""A lane that is held by a pause is looked at again after this long at the soonest."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was refused for its key. `wait_seconds`: what the server asked for, if it did."""

    key: str
    code: str
    message: str
    endpoint: str
    wait_seconds: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """A key that is not used. `probe_seconds`: until the next probe may go (0 or less: now)."""

    key: str
    code: str
    message: str
    endpoint: str
    since: datetime
    refusals: int
    probe_seconds: float


def begin(connection: Connection, refusal: Refusal, job_id: str, fence: int) -> None:
    """Pause a key because this call was refused.

    Where a probe was refused, the pause goes on: the next one goes after a wait that doubles. A
    call from before the pause tells nothing new.
    """
    known = connection.execute(
        select(pause.c.since, pause.c.refusals).where(pause.c.key == refusal.key).with_for_update()
    ).one_or_none()
    if known is not None and _prepared_at(connection, job_id, fence) < known.since:
        return
    refusals = 1 if known is None else known.refusals + 1
    doubled = FIRST_PROBE_SECONDS * 2.0 ** min(refusals - 1, _DOUBLINGS)
    wait = doubled if refusal.wait_seconds is None else refusal.wait_seconds
    row = {
        "code": refusal.code,
        "message": refusal.message,
        "endpoint": refusal.endpoint,
        "refusals": refusals,
        "probe_at": from_now(wait),
    }
    insert_or_update(connection, pause, {"key": refusal.key, "since": from_now(), **row}, row)


def _prepared_at(connection: Connection, job_id: str, fence: int) -> datetime:
    prepared_at: datetime = connection.execute(
        select(attempt.c.prepared_at).where(attempt.c.job_id == job_id, attempt.c.fence == fence)
    ).scalar_one()
    return prepared_at


_ACTIVE: Final = select(pause, from_now().label("now")).order_by(pause.c.key)


def active(connection: Connection) -> list[Pause]:
    """List the pauses, by their keys."""
    rows = connection.execute(_ACTIVE)
    return [
        Pause(
            row.key,
            row.code,
            row.message,
            row.endpoint,
            row.since,
            row.refusals,
            (row.probe_at - row.now).total_seconds(),
        )
        for row in rows
    ]


def take_probe(connection: Connection, key: str) -> bool:
    """Take the one probe that is due for a key; whether it was still there to be taken."""
    taken = connection.execute(
        update(pause)
        .where(pause.c.key == key, pause.c.probe_at <= from_now())
        .values(probe_at=from_now(PROBE_LEASE_SECONDS))
    )
    return taken.rowcount == 1


def end_if_proved(connection: Connection, key: str, job_id: str, fence: int) -> None:
    """End a key's pause because this call was not refused; one from before it proves nothing."""
    begun = select(attempt.c.prepared_at).where(
        attempt.c.job_id == job_id, attempt.c.fence == fence
    )
    connection.execute(
        delete(pause).where(pause.c.key == key, pause.c.since < begun.scalar_subquery())
    )


def end_all(connection: Connection) -> list[str]:
    """End every pause; return the keys."""
    return list(connection.scalars(delete(pause).returning(pause.c.key)))
