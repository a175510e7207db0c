"""The sweep: a thread of every worker process that does, each second, what nobody asked for.

It renews the lease, takes over what dead workers held, rings for work that no message announces,
and reports batches to Flower. There is no beat process to keep alive.
"""

import threading
import time
from typing import Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from worker.errors import DatabaseError
from worker.execution.outage import Outage
from worker.execution.runtime import Runtime
from worker.store import pauses, queries
from worker.store.engine import RefusedError
from worker.telemetry.flower import BatchRows, held_text

EVERY_SECONDS: Final = 1.0
CLEAN_EVERY_SECONDS: Final = 300.0
AFTER_END_SECONDS: Final = 2.0
"""A batch's end is told until so long after it: another worker's report may have passed it."""

log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps until stopped."""

    def __init__(self, runtime: Runtime, app: Celery, node: str) -> None:
        self._runtime = runtime
        self._app = app
        self._node = node
        self._broker = Outage("broker")
        self._stop = threading.Event()
        self._cleaned = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self) -> None:
        """Sweep a last time, so that what just finished is told, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self._sweep()
        while not self._stop.wait(EVERY_SECONDS):
            self._sweep()
        self._sweep()

    def _sweep(self) -> None:
        try:
            self._runtime.sweep()
            if time.monotonic() - self._cleaned > CLEAN_EVERY_SECONDS:
                self._cleaned = time.monotonic()
                self._runtime.clean()
            self._report()
        except DatabaseError as error:
            self._runtime.outage.note(error)
        except RefusedError:
            log.exception("sweep_failed")

    def _report(self) -> None:
        """Tell Flower of the batches whose turn it is."""
        with self._runtime.database.write() as connection:
            reports = queries.take_reports(connection, EVERY_SECONDS, AFTER_END_SECONDS)
            held = held_text(one.code for one in pauses.active(connection))
        if not reports:
            return
        try:
            with self._app.pool.acquire(block=True) as connection:
                dispatcher = self._app.events.Dispatcher(connection, hostname=self._node)
                rows = BatchRows(dispatcher.send)
                for report in reports:
                    rows.tell(report.batch, is_first=report.is_first, held=held)
            self._broker.over()
        except (OperationalError, OSError) as error:
            self._broker.note(error)
