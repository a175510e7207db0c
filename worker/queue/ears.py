"""Celery's consumer, as far as others need it: whether it listens, and how it is made to anew.

Its words about a broker that is away, one for each try, become the two lines of an outage.
"""

import logging
from typing import Any, NoReturn

import structlog
from celery.worker import state
from celery.worker.consumer import consumer as celery_consumer

from worker.execution.outage import Outage

log = structlog.get_logger(__name__)


class SturdyConsumer(celery_consumer.Consumer):  # type: ignore[misc]  # celery has no types
    """A consumer that a broken connection cannot end.

    Celery 5.7 lets go of the old connection, and acknowledges on it, with code that may raise what
    it does not expect, and then ends the worker. Nothing of that is needed: a message that comes
    twice does nothing.
    """

    def on_connection_error_after_connected(self, error: Exception) -> None:
        """Let go of the old connection, whatever is left of it."""
        try:
            super().on_connection_error_after_connected(error)
        except Exception as fault:  # noqa: BLE001  # which ones is not in Celery's hands
            log.debug("old_connection_fails", error=repr(fault))
            self.connection = None

    def call_soon_ack(self, acknowledge: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge, if that is still possible."""

        def attempt() -> None:
            try:
                acknowledge(*args, **kwargs)
            except Exception as fault:  # noqa: BLE001  # as above
                log.debug("not_acknowledged", error=repr(fault))

        return super().call_soon_ack(attempt)


class DeafError(ConnectionError):
    """Raised in Celery's loop, which takes it for a lost connection and consumes anew."""


class Ears:
    """The consumer of the worker of that node name."""

    def __init__(self, node: str, broker: Outage) -> None:
        self.node = node
        self._broker = broker
        self._worker: Any = None
        logging.getLogger(celery_consumer.__name__).addFilter(self._is_news)

    def attach(self, worker: Any) -> None:
        """Take Celery's worker, once it has made its consumer."""
        self._worker = worker

    @property
    def are_open(self) -> bool:
        """Whether it is connected."""
        return self._worker is not None and self._worker.consumer.connection is not None

    @property
    def are_full(self) -> bool:
        """Whether all threads are at work, so that it takes no message for that reason."""
        return self._worker is not None and len(state.reserved_requests) >= self._worker.concurrency

    def restart(self) -> None:
        """Let it connect and consume anew."""
        self._worker.consumer.call_soon(_be_deaf)

    def stop(self) -> None:
        """Stop it, as Celery's warm shutdown does. Also before it began."""
        state.should_stop = 0
        if self._worker is not None:
            self._worker.consumer.call_soon(_wake)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Keep back what only says that the broker is away, and note that."""
        if record.levelno < logging.WARNING or not isinstance(record.args, tuple):
            return True
        errors = [one for one in record.args if isinstance(one, Exception)]
        if record.msg != celery_consumer.CONNECTION_ERROR and (
            celery_consumer.CONNECTION_RETRY not in record.args
        ):
            return True
        for error in errors:
            if not isinstance(error, DeafError):
                self._broker.note(error)
        return False


def _be_deaf() -> NoReturn:
    raise DeafError("the consumer hears no ring")


def _wake() -> None:
    """Do nothing: Celery's loop looks whether it is to stop after each thing it does."""
