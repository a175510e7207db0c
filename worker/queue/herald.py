"""What a worker process sends to the broker: rings for itself, and the rows of batches in Flower.

A thread of its own, because a broker that hangs must hold up neither the lease nor the work.
"""

import threading
from collections.abc import Callable
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from worker.execution.outage import Outage
from worker.execution.runtime import Runtime
from worker.queue.bell import Bell
from worker.queue.ears import Ears
from worker.queue.rounds import EVERY_SECONDS, Rounds
from worker.store import pauses, queries
from worker.telemetry.flower import BatchRows, held_text

AFTER_END_SECONDS: Final = 2.0
"""A batch's end is told until so long after it: another worker's report may have passed it."""


class Herald:
    """Rings when asked to, and reports each second. `on_rung` is told of rings that went out."""

    def __init__(
        self, runtime: Runtime, app: Celery, ears: Ears, broker: Outage, on_rung: Callable[[], None]
    ) -> None:
        self._runtime = runtime
        self._app = app
        self._ears = ears
        self._broker = broker
        self._on_rung = on_rung
        self._bell = Bell(app, broker)
        self._wanted = threading.Event()
        self._rounds = Rounds("herald", self._round, runtime.outage)

    def start(self) -> None:
        """Begin; until then nothing goes out."""
        self._rounds.start()

    def ring(self) -> None:
        """Invite this worker to a shift, soon. Returns at once."""
        self._wanted.set()
        self._rounds.call()

    def stop(self) -> None:
        """Report a last time, so that what just finished is told, and end."""
        self._rounds.stop()

    def _round(self) -> None:
        if self._wanted.is_set():
            self._wanted.clear()
            if self._bell.ring_shift_at(self._ears.node):
                self._on_rung()
        if self._ears.are_open:
            self._broker.over()
        self._report()

    def _report(self) -> None:
        """Tell Flower of the batches whose turn it is."""
        with self._runtime.database.write() as connection:
            reports = queries.take_reports(connection, EVERY_SECONDS, AFTER_END_SECONDS)
            held = held_text(one.code for one in pauses.active(connection))
        if not reports:
            return
        try:
            with self._app.pool.acquire(block=True) as connection:
                dispatcher = self._app.events.Dispatcher(connection, hostname=self._ears.node)
                rows = BatchRows(dispatcher.send)
                for report in reports:
                    rows.tell(report.batch, is_first=report.is_first, held=held)
        except (OperationalError, OSError) as error:
            self._broker.note(error)
