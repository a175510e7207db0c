"""The Celery application: the doorbell. Messages invite a worker to claim; they carry no request.

Made by a worker process, by Flower and by producers; it is never the process's current app, so
that a web application can have a Celery of its own.
"""

from typing import Any, Final

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from worker.errors import BrokerError, SettingsError
from worker.settings import Settings

RUN_SHIFT: Final = "chatqueue.run_shift"
RUN_JOB: Final = "chatqueue.run_job"
BULK_QUEUE: Final = "chatqueue.bulk"
INTERACTIVE_QUEUE: Final = "chatqueue.interactive"
SHIFT_RING_EXPIRES_SECONDS: Final = 300

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
    app.conf.update(_configuration(broker))
    return app


def _configuration(broker: str) -> dict[str, Any]:
    return {
        "broker_url": broker,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 5,
        "broker_pool_limit": 32,
        "broker_transport_options": _transport_options(broker),
        "task_queues": [_queue(BULK_QUEUE), _queue(INTERACTIVE_QUEUE)],
        "task_default_queue": BULK_QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": True,
        "task_ignore_result": True,
        "task_track_started": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_rate_limits": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_direct": True,
        "worker_enable_remote_control": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": True,
        "event_queue_expires": 60,
    }


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name), routing_key=name)


def _transport_options(broker: str) -> dict[str, Any]:
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
