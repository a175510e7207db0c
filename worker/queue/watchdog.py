"""The watchdog: sees that work which nobody was rung for is done, and that rings are heard.

The broker is only a doorbell. Where there is work, no shift is on and no ring is answered, this
process begins shifts by itself, so a broker may be away for hours. Where rings go out and are not
answered, the consumer is deaf although it is connected, as may happen after a reconnect: it is made
to consume anew.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from worker.execution.runtime import Runtime
from worker.queue.ears import Ears
from worker.queue.rounds import Rounds

UNRUNG_SECONDS: Final = 5.0
"""Work that no ring brings a shift to for so long is begun without one."""

DEAF_SECONDS: Final = 15.0
"""Rings that went out and are unanswered for so long were not heard."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Hearing:
    """What is known of whether rings are answered. Pure: told the time, in seconds.

    `unrung`: work is done without rings, since they bring none.
    """

    unrung: bool = False
    unserved_since: float | None = None
    unanswered_since: float | None = None

    @property
    def wants_ring(self) -> bool:
        """Whether a ring should go out: for the work, or to learn whether rings are heard."""
        waits = self.unserved_since is not None or self.unanswered_since is not None
        return self.unrung or waits

    def rung(self, now: float) -> None:
        """Note that a ring went out."""
        if self.unanswered_since is None:
            self.unanswered_since = now

    def heard(self) -> None:
        """Note that a ring was answered."""
        self.unrung = False
        self.unanswered_since = None

    def must_begin(self, now: float, *, unserved: bool) -> bool:
        """Say whether to begin a shift without a ring. `unserved`: there is work, and no shift."""
        if not unserved:
            self.unserved_since = None
            return False
        if self.unserved_since is None:
            self.unserved_since = now
        self.unrung |= now - self.unserved_since >= UNRUNG_SECONDS
        return self.unrung

    def is_deaf(self, now: float, *, can_hear: bool) -> bool:
        """Say whether rings go unheard, once in so many seconds.

        `can_hear`: the consumer is connected and has room, so that it ought to.
        """
        if not can_hear:
            self.unanswered_since = None
        since = self.unanswered_since
        if since is None or now - since < DEAF_SECONDS:
            return False
        self.unanswered_since = None
        return True


class Watchdog:
    """Watches a runtime until stopped."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self._hearing = Hearing()
        self._turn = threading.Lock()

    def start(self, runtime: Runtime, ring: Callable[[], None]) -> None:
        """Begin to watch. `ring` invites this worker to a shift; it must not block."""
        self._runtime = runtime
        self._ring = ring
        self._rounds = Rounds("watchdog", self._look, runtime.outage)
        self._rounds.start()

    def stop(self) -> None:
        """End."""
        self._rounds.stop()

    def rung(self) -> None:
        """Note that a ring for this worker went out."""
        with self._turn:
            self._hearing.rung(time.monotonic())

    def heard(self) -> None:
        """Note that a ring was answered."""
        with self._turn:
            again = self._hearing.unrung
            self._hearing.heard()
        if again:
            log.info("rings_answered")

    def hand_over(self) -> None:
        """See to the shift that follows one whose quota has ended."""
        if self._hearing.unrung:
            self._rounds.call()
        else:
            self._ring()

    def _look(self) -> None:
        unserved = self._runtime.is_unserved()
        can_hear = self._ears.are_open and not self._ears.are_full
        now = time.monotonic()
        with self._turn:
            before = self._hearing.unrung
            begin = self._hearing.must_begin(now, unserved=unserved)
            deaf = self._hearing.is_deaf(now, can_hear=can_hear)
            ring = self._hearing.wants_ring
        if begin:
            if not before:
                log.warning("works_unrung", after_seconds=UNRUNG_SECONDS)
            threading.Thread(target=self._work, name="unrung shift", daemon=True).start()
        if deaf:
            log.warning("consumer_deaf", after_seconds=DEAF_SECONDS)
            self._ears.restart()
        if ring:
            self._ring()

    def _work(self) -> None:
        try:
            self._runtime.run_shift()
        except Exception:
            log.exception("shift_failed")
