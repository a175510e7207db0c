"""One log line when something outside goes away, one when it is back; nothing in between."""

import threading
import time

import structlog

log = structlog.get_logger(__name__)


class Outage:
    """Whether a dependency (the database, the broker) is away. Safe to use from any thread."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._since: float | None = None

    def note(self, error: BaseException) -> None:
        """Note a failure; the first one of an outage is logged."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                log.error("lost", what=self._what, error=str(error))

    def over(self) -> None:
        """Note a success; the one that ends an outage is logged, with how long it took."""
        if self._since is None:
            return
        with self._lock:
            if self._since is not None:
                seconds = round(time.monotonic() - self._since, 1)
                log.info("back", what=self._what, seconds=seconds)
                self._since = None
