"""One worker process: a Celery worker on the threads pool around one runtime."""

import gc
import os
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery import Celery, bootsteps, signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from worker.execution.outage import Outage
from worker.execution.runtime import Runtime
from worker.jobs.queues import BULK, INTERACTIVE
from worker.queue.app import create_app, queue_name
from worker.queue.ears import Ears
from worker.queue.herald import Herald
from worker.queue.stopping import Signals
from worker.queue.sweeper import Sweeper
from worker.queue.tasks import define_tasks
from worker.queue.watchdog import Watchdog
from worker.settings import Settings

log = structlog.get_logger(__name__)

SHIFT_THREADS: Final = 8
"""Threads that wait for shifts: one is claiming, the others see off their tails."""

LEAVE_SECONDS: Final = 5.0
"""How long Celery may take to end once nothing is under way: a silent broker could hold it."""

COLLECT_AFTER: Final = (20_000, 20, 50)
"""How much is made before garbage is looked for. By Python's own measure, calls in flight set off a
look through all that is alive so often that it took a fifth of a job's CPU."""


def serve(settings: Settings, name: str, on_ready: Callable[[], None]) -> int:
    """Run a worker of that name; return the exit status. SIGTERM drains it.

    `on_ready` is called once it consumes. Raises ChatqueueError where it cannot even begin: no
    key, no broker, no database, a schema of another version.
    """
    asked = Signals()
    asked.install()
    process = _Process(settings, name, on_ready)
    asked.see_to(process.stop)
    return process.run(asked.install)


class _Process:
    """The parts of a worker process, and its end."""

    def __init__(self, settings: Settings, name: str, on_ready: Callable[[], None]) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._app = create_app(settings)
        broker = Outage("broker")
        self._ears = Ears(f"{name}@{socket.gethostname()}", broker)
        self._watchdog = Watchdog(self._ears)
        self._runtime = Runtime(settings, self._ears.node, self._watchdog.hand_over)
        self._herald = Herald(self._runtime, self._app, self._ears, broker, self._watchdog.rung)
        self._sweeper = Sweeper(self._runtime)
        define_tasks(self._app, self._runtime, self._watchdog.heard)
        self._turn = threading.Lock()
        self._ending = threading.Lock()
        self._celery_left = threading.Event()
        self._is_stopping = self._has_ended = False

    def run(self, install_signals: Callable[[], None]) -> int:
        """Work until stopped; return the exit status."""

        def started(worker: Any) -> None:
            self._ears.attach(worker)
            install_signals()

        _hook(self._app, on_start=started, on_close=lambda: self.stop(at_once=False))
        signals.worker_ready.connect(self._ready, weak=False)
        signals.setup_logging.connect(_logging_is_ours, weak=False)
        # Celery warns root of pickle, which this app does not accept, and whoever loses a broker of
        # a default that is set here already.
        for category in (SecurityWarning, CPendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category)
        # Neither waits for the broker: while that is away, the work is done without it.
        self._sweeper.start()
        self._watchdog.start(self._runtime, self._herald.ring)
        status = 0
        try:
            self._app.worker_main(_arguments(self._settings, self._ears.node))
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
        finally:
            self._celery_left.set()
            self._end(status)
        return status

    def stop(self, *, at_once: bool) -> None:
        """Claim no more, and end when the calls in flight have; with `at_once` they are cut."""
        with self._turn:
            first, self._is_stopping = not self._is_stopping, True
        if first or at_once:
            self._runtime.drain(0.0 if at_once else self._settings.drain_seconds)
        if first:
            self._ears.stop()
            threading.Thread(target=self._see_celery_out, name="stop", daemon=True).start()

    def _ready(self, **_: Any) -> None:
        _spare_the_collector()
        self._herald.start()
        slots = self._settings.max_in_flight
        log.info("worker_ready", node=self._ears.node, max_in_flight=slots)
        self._on_ready()

    def _see_celery_out(self) -> None:
        """End the process where Celery does not."""
        self._runtime.finish()
        if not self._celery_left.wait(LEAVE_SECONDS):
            log.warning("celery_left_behind", after_seconds=LEAVE_SECONDS)
            self._end(0)
            os._exit(0)

    def _end(self, status: int) -> None:
        """Let go of everything, once: whoever comes second waits for the first."""
        self._runtime.finish()
        with self._ending:
            if self._has_ended:
                return
            self._has_ended = True
            for part in (self._watchdog, self._sweeper, self._herald):
                part.stop()
            has_closed = self._runtime.close()
            log.info("worker_stopped", node=self._ears.node)
            if not has_closed:
                os._exit(status)  # a thread hangs in the database: the interpreter would wait


def _spare_the_collector() -> None:
    """Look for garbage rarely, and never among what the process is built of."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _hook(app: Celery, on_start: Callable[[Any], None], on_close: Callable[[], None]) -> None:
    """Be called when Celery's worker begins, before it connects, and when it begins to end."""

    class Hook(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
        def start(self, worker: Any) -> None:
            on_start(worker)

        def close(self, _worker: Any) -> None:
            on_close()

    app.steps["worker"].add(Hook)


def _arguments(settings: Settings, node: str) -> list[str]:
    queues = ",".join(queue_name(settings, queue) for queue in (BULK, INTERACTIVE))
    return [
        "--quiet",
        "worker",
        "--pool=threads",
        f"--concurrency={settings.interactive_slots + SHIFT_THREADS}",
        f"--hostname={node}",
        f"--queues={queues}",
        "--without-gossip",
        "--without-mingle",
        "--task-events",
        "--loglevel=WARNING",
    ]


def _logging_is_ours(**_: Any) -> None:
    """Keep Celery from configuring logging: merely being connected does so."""
