"""One log line when something outside goes away, one when it is back; nothing in between."""

import threading
import time
from typing import Final

import structlog

QUIET_SECONDS: Final = 3.0
"""An outage is over when nothing has failed for so long, though things were tried.

Most are not whole: a full disk may still take a heartbeat, a read-only database can be read.
"""

log = structlog.get_logger(__name__)


class Outage:
    """Whether a dependency (the database, the broker) is away. Safe to use from any thread."""

    def __init__(self, what: str, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._what = what
        self._quiet_seconds = quiet_seconds
        self._lock = threading.Lock()
        self._since: float | None = None
        self._failed = 0.0

    def note(self, error: BaseException) -> None:
        """Note a failure; the first one of an outage is logged."""
        with self._lock:
            self._failed = time.monotonic()
            if self._since is None:
                self._since = self._failed
                log.error("lost", what=self._what, error=str(error))

    def over(self) -> None:
        """Note a success; the one that ends an outage is logged, with how long it took.

        To be called again and again: soon after a failure it proves nothing.
        """
        if self._since is None:
            return
        with self._lock:
            quiet = time.monotonic() - self._failed >= self._quiet_seconds
            if self._since is not None and quiet:
                seconds = round(self._failed - self._since, 1)
                log.info("back", what=self._what, seconds=seconds)
                self._since = None
