"""For `chatqueue prove`: emptying and removing the queues of one prefix on a broker.

Called by `worker.prove` only. It touches no queue and no exchange of another prefix. On Redis the
keys are removed instead (`worker.stack.keys`), which is more than the queues.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu.entity import Exchange
from kombu.exceptions import OperationalError

from worker.errors import BrokerError
from worker.jobs.queues import BULK, INTERACTIVE
from worker.queue.app import create_app
from worker.settings import Settings


def purge_queues(settings: Settings, workers: Sequence[str]) -> None:
    """Throw away every message to these workers, by their names. Raises BrokerError."""
    with _queues(settings, workers) as queues:
        for queue in queues:
            queue.purge()


def remove_queues(settings: Settings, workers: Sequence[str]) -> None:
    """Delete the queues of these workers, by their names, and the exchanges of their prefix.

    Raises BrokerError.
    """
    with _queues(settings, workers) as queues:
        for queue in queues:
            queue.delete()
        for name in _exchanges(settings.queue_prefix):
            Exchange(name, channel=queues[0].channel).delete()


def _exchanges(prefix: str) -> list[str]:
    shared = [f"{prefix}.events", f"{prefix}.pidbox", f"reply.{prefix}.pidbox"]
    return [*shared, *(f"{prefix}.{queue}" for queue in (BULK, INTERACTIVE))]


@contextmanager
def _queues(settings: Settings, workers: Sequence[str]) -> Iterator[list[Any]]:
    """Give the queues, declared, with a connection to the broker."""
    app = create_app(settings)
    with app.connection_for_write() as connection:
        errors: tuple[type[Exception], ...] = (
            OperationalError,
            *connection.connection_errors,
            *connection.channel_errors,
        )
        try:
            connection.ensure_connection(max_retries=0, timeout=5)
            queues = [queue(connection.default_channel) for queue in _all(app, workers)]
            for queue in queues:
                queue.declare()
            yield queues
        except errors as error:
            raise BrokerError(f"its queues cannot be reached: {error}") from error


def _all(app: Celery, workers: Sequence[str]) -> list[Any]:
    host = socket.gethostname()
    return [*app.conf.task_queues, *(worker_direct(f"{name}@{host}") for name in workers)]
