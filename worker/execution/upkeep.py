"""What every worker does in SQL once a second, beside the jobs it runs.

It renews its lease, takes over what dead workers held, ends what was cancelled or is past its
deadline, and lets go on what a clock that went back would keep waiting. Every step is guarded in
SQL, so it does not matter how many workers do it at once.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import structlog

from worker.settings import Settings
from worker.store import endings, leases, lost, setback
from worker.store.engine import Database
from worker.store.leases import Sign
from worker.store.records import mark_sent

CONFIRM_SECONDS: Final = 3.0
"""A worker whose lease has run out is watched for so long before it counts as dead."""

log = structlog.get_logger(__name__)


class Watch:
    """Tells dead workers by their signs, with this process' own clock.

    A lease that has run out by the database's clock is not enough: after that clock has jumped, or
    the database was away, the leases of all workers have run out, and each is about to renew its
    own. So a sign must also have stood still while it was watched: for a few seconds, or, where the
    clock jumped back and no lease runs out any more, for as long as a lease.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._since: dict[str, tuple[datetime, float]] = {}
        self._looked: float | None = None

    def dead(self, signs: Iterable[Sign], now: float) -> list[Sign]:
        """Look at the signs, at a time in seconds that only grows; return the dead workers."""
        if self._looked is not None and now - self._looked > CONFIRM_SECONDS:
            self._since.clear()  # while we could not look, nobody could give a sign
        self._looked = now
        seen: dict[str, tuple[datetime, float]] = {}
        dead: list[Sign] = []
        for sign in signs:
            lease, since = self._since.get(sign.worker_id, (sign.lease_until, now))
            if lease != sign.lease_until:
                since = now
            seen[sign.worker_id] = (sign.lease_until, since)
            if self._is_dead(sign, now - since):
                dead.append(sign)
        self._since = seen
        return dead

    def _is_dead(self, sign: Sign, still_seconds: float) -> bool:
        if sign.stopped:
            return True
        return still_seconds >= (CONFIRM_SECONDS if sign.lapsed else self._lease_seconds)


class Upkeep:
    """The upkeep of one worker. Belongs to the sweep's thread."""

    def __init__(self, database: Database, worker_id: str, settings: Settings) -> None:
        self._database = database
        self._worker_id = worker_id
        self._settings = settings
        self._watch = Watch(settings.lease_seconds)
        self._clock_went_back = True  # nobody may have been there to see it

    def run(self, newly_sent: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Do it all once; return the jobs that this worker still holds, with their fences.

        `newly_sent` are calls that were seen in flight. Raises DatabaseError.
        """
        lease = self._settings.lease_seconds
        with self._database.write() as connection:
            self._clock_went_back |= setback.is_seen(connection, self._worker_id, lease)
            leases.heartbeat(connection, self._worker_id, lease)
            if newly_sent:
                mark_sent(connection, newly_sent)
        self._take_over()
        self._mend_setback()
        self._end()
        with self._database.read() as connection:
            return leases.still_held(connection, self._worker_id)

    def _take_over(self) -> None:
        with self._database.read() as connection:
            signs = leases.signs_of_others(connection, self._worker_id)
        dead = self._watch.dead(signs, time.monotonic())
        if not dead:
            return
        with self._database.write() as connection:
            count = lost.rescue(
                connection,
                dead,
                max_attempts=self._settings.max_attempts,
                unknown_outcome=self._settings.unknown_outcome,
            )
        if count:
            log.warning("jobs_rescued", count=count)

    def _mend_setback(self) -> None:
        count = 0
        while self._clock_went_back:
            with self._database.write() as connection:
                step = setback.mend_step(connection)
            count += step
            self._clock_went_back = step > 0
        if count:
            log.warning("clock_went_back", freed=count)

    def _end(self) -> None:
        """End some of what was cancelled, or is past its deadline: the next run goes on."""
        with self._database.read() as connection:
            cancelling, overdue = endings.cancelling(connection), endings.overdue(connection)
        for batch_id in cancelling:
            with self._database.write() as connection:
                endings.cancel_step(connection, batch_id)
        for batch_id in overdue:
            with self._database.write() as connection:
                endings.expire_step(connection, batch_id)
        with self._database.write() as connection:
            endings.expire_jobs(connection)
