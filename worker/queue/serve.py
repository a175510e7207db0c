"""One worker process: a Celery worker on the threads pool around one runtime."""

import socket
import warnings
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery import signals
from celery.exceptions import SecurityWarning

from worker.execution.runtime import Runtime
from worker.queue.app import BULK_QUEUE, INTERACTIVE_QUEUE, create_app
from worker.queue.bell import Bell
from worker.queue.sweeper import Sweeper
from worker.queue.tasks import define_tasks
from worker.settings import Settings

log = structlog.get_logger(__name__)

SHIFT_THREADS: Final = 8
"""Threads that wait for shifts: one is claiming, the others see off their tails."""


def serve(settings: Settings, name: str, on_ready: Callable[[], None]) -> int:
    """Run a worker of that name; return the exit status. SIGTERM drains it.

    `on_ready` is called once it consumes. Raises ChatqueueError where it cannot even begin: no
    key, no broker, no database, a schema of another version.
    """
    app = create_app(settings)
    node = f"{name}@{socket.gethostname()}"
    bell = Bell(app)
    runtime = Runtime(settings, node, ring=lambda: bell.ring_shift_at(node))
    sweeper = Sweeper(runtime, app, node)
    define_tasks(app, runtime)

    def ready(**_: Any) -> None:
        sweeper.start()
        log.info("worker_ready", node=node, max_in_flight=settings.max_in_flight)
        on_ready()

    def shutting_down(how: str, **_: Any) -> None:
        grace = settings.drain_seconds if how == "Warm" else 0.0
        log.info("worker_stopping", node=node, in_flight=runtime.in_flight, grace_seconds=grace)
        runtime.drain(grace)

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.setup_logging.connect(_logging_is_ours, weak=False)
    # Celery warns root of pickle, which this app does not accept.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    try:
        app.worker_main(_arguments(settings, node))
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
    finally:
        sweeper.stop()
        runtime.close()
        log.info("worker_stopped", node=node)
    return 0


def _arguments(settings: Settings, node: str) -> list[str]:
    return [
        "--quiet",
        "worker",
        "--pool=threads",
        f"--concurrency={settings.interactive_slots + SHIFT_THREADS}",
        f"--hostname={node}",
        f"--queues={BULK_QUEUE},{INTERACTIVE_QUEUE}",
        "--without-gossip",
        "--without-mingle",
        "--task-events",
        "--loglevel=WARNING",
    ]


def _logging_is_ours(**_: Any) -> None:
    """Keep Celery from configuring logging: merely being connected does so."""
