"""A thread that does something each second, whatever is away meanwhile."""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from worker.errors import DatabaseError
from worker.execution.outage import Outage

EVERY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 3.0
"""How long a stop waits for a round that hangs in a broker or a database which does not answer."""

log = structlog.get_logger(__name__)


class Rounds:
    """Makes a round each second, and one at once when it is called for."""

    def __init__(self, name: str, make: Callable[[], None], database: Outage) -> None:
        self._make = make
        self._database = database
        self._called = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def call(self) -> None:
        """Let the next round be made now."""
        self._called.set()

    def stop(self) -> None:
        """Make a last round, and end. One that was never begun makes none."""
        self._stopping = True
        self._called.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping:
            self._round()
            self._called.wait(EVERY_SECONDS)
            self._called.clear()
        self._round()

    def _round(self) -> None:
        try:
            self._make()
        except DatabaseError as error:
            self._database.note(error)
        except Exception:
            # A fault of ours must cost one round, not the thread: the lease hangs on it.
            log.exception("round_failed", of=self._thread.name)
