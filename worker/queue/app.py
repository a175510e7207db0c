"""The Celery application: the doorbell. Messages invite a worker to claim; they carry no request.

Made by a worker process, by Flower and by producers; it is never the process's current app, so
that a web application can have a Celery of its own.
"""

from typing import Any, Final

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from worker.errors import BrokerError, SettingsError
from worker.jobs.queues import BULK, INTERACTIVE
from worker.settings import Settings

RUN_SHIFT: Final = "chatqueue.run_shift"
RUN_JOB: Final = "chatqueue.run_job"
SHIFT_RING_EXPIRES_SECONDS: Final = 300
DEFAULT_PREFIX: Final = "chatqueue"
"""With this prefix what Celery itself names keeps the names that Celery gives it."""

_VISIBILITY_SECONDS: Final = 3 * 3600
"""Longer than any shift: a message redelivered meanwhile would do nothing, but noisily."""


def create_app(settings: Settings) -> Celery:
    """Make the app for a broker. Raises SettingsError where no broker is set."""
    broker = settings.celery_broker_url
    if broker is None:
        raise SettingsError(
            ["CHATQUEUE_BROKER_URL: no broker is set, and the embedded stack is not up"]
        )
    app = Celery("chatqueue", set_as_current=False)
    app.conf.update(_configuration(broker, settings.queue_prefix))
    return app


def queue_name(settings: Settings, queue: str) -> str:
    """Name one of the two queues as the broker knows it."""
    return f"{settings.queue_prefix}.{queue}"


def _configuration(broker: str, prefix: str) -> dict[str, Any]:
    bulk, interactive = f"{prefix}.{BULK}", f"{prefix}.{INTERACTIVE}"
    return {
        "broker_url": broker,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 5,
        "broker_pool_limit": 32,
        "broker_transport_options": _transport_options(broker, prefix),
        "task_queues": [_queue(bulk), _queue(interactive)],
        "task_default_queue": bulk,
        "task_routes": {RUN_SHIFT: {"queue": bulk}, RUN_JOB: {"queue": interactive}},
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": True,
        "task_ignore_result": True,
        "task_track_started": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_rate_limits": True,
        "worker_consumer": "worker.queue.ears:SturdyConsumer",
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_direct": True,
        "worker_enable_remote_control": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": True,
        "event_queue_expires": 60,
        **_exchanges(prefix),
    }


def _exchanges(prefix: str) -> dict[str, str]:
    """Name what Celery shares among all apps of a broker, where another installation is there."""
    if prefix == DEFAULT_PREFIX:
        return {}
    return {
        "event_exchange": f"{prefix}.events",
        "event_queue_prefix": prefix,
        "control_exchange": prefix,
    }


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name), routing_key=name)


def _transport_options(broker: str, prefix: str) -> dict[str, Any]:
    # A ring that is lost is rung again by the sweep: nobody is kept waiting for a broker that is
    # away. (What consumes has its own patience, `broker_connection_max_retries`.)
    options: dict[str, Any] = {"max_retries": 0}
    if broker.startswith("amqp"):
        return options | {"confirm_publish": True}
    options |= {
        "visibility_timeout": _VISIBILITY_SECONDS,
        "max_connections": 64,
        "socket_timeout": 30,
        "health_check_interval": 25,
        "socket_connect_timeout": 5,
    }
    if prefix != DEFAULT_PREFIX:
        options["global_keyprefix"] = f"{prefix}:"  # of the keys that kombu names, too
    if not broker.startswith("redis+socket"):
        options["socket_keepalive"] = True
    return options


def check_broker(settings: Settings) -> None:
    """Connect to the broker once. Raises BrokerError."""
    app = create_app(settings)
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0, timeout=5)
    except (OperationalError, OSError) as error:
        raise BrokerError(f"it cannot be reached: {error}") from error
