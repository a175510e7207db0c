"""The sweep: a thread of every worker process that does, each second, what nobody asked for.

It renews the lease and takes over what dead workers held. It has nothing to do with the broker, so
that one which hangs cannot cost a lease. There is no beat process to keep alive.
"""

import time
from typing import Final

from worker.execution.runtime import Runtime
from worker.queue.rounds import Rounds

CLEAN_EVERY_SECONDS: Final = 300.0


class Sweeper:
    """Sweeps until stopped."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._cleaned = time.monotonic()
        self._rounds = Rounds("sweeper", self._sweep, runtime.outage)

    def start(self) -> None:
        """Begin to sweep."""
        self._rounds.start()

    def stop(self) -> None:
        """Sweep a last time, and end."""
        self._rounds.stop()

    def _sweep(self) -> None:
        self._runtime.sweep()
        if time.monotonic() - self._cleaned > CLEAN_EVERY_SECONDS:
            self._cleaned = time.monotonic()
            self._runtime.clean()
