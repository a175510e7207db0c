"""The doorbell on Valkey and, where they answer, on the machine's own Redis and RabbitMQ."""

from typing import Any

import pytest
from kombu.connection import Connection

from worker.queue.app import BULK_QUEUE, INTERACTIVE_QUEUE, RUN_JOB, RUN_SHIFT, create_app
from worker.queue.bell import Bell
from worker.settings import Settings

BROKERS = [
    "valkey",
    pytest.param("redis_service", marks=pytest.mark.services),
    pytest.param("rabbitmq_service", marks=pytest.mark.services),
]


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def ring(broker_url: str, act: Any) -> bool:
    with create_app(Settings.load(broker_url=broker_url)) as app:
        return bool(act(Bell(app)))


def next_message(broker_url: str, queue: Any) -> Any:
    connect: Any = Connection
    with connect(broker_url) as connection, connection.SimpleQueue(queue) as messages:
        message = messages.get(timeout=20)
        message.ack()
        return message


def queue_of(broker_url: str, name: str) -> Any:
    app = create_app(Settings.load(broker_url=broker_url))
    return next(queue for queue in app.conf.task_queues if queue.name == name)


def test_a_ring_for_a_job_carries_its_id_and_nothing_else(broker_url: str) -> None:
    assert ring(broker_url, lambda bell: bell.ring_job("job_1"))
    message = next_message(broker_url, queue_of(broker_url, INTERACTIVE_QUEUE))
    assert (message.headers["task"], message.headers["id"]) == (RUN_JOB, "job_1")
    assert message.payload[:2] == [["job_1"], {}]
    assert message.content_type == "application/json"


def test_a_ring_for_a_shift_expires(broker_url: str) -> None:
    assert ring(broker_url, lambda bell: bell.ring_shift())
    message = next_message(broker_url, queue_of(broker_url, BULK_QUEUE))
    assert message.headers["task"] == RUN_SHIFT
    assert message.headers["expires"]


def test_a_broker_that_is_away_fails_no_submission() -> None:
    assert ring("redis://127.0.0.1:1/0", lambda bell: bell.ring_shift()) is False
    assert ring("amqp://127.0.0.1:1//", lambda bell: bell.ring_job("job_1")) is False
