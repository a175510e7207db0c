"""The doorbell on Valkey and, where they answer, on the machine's own Redis and RabbitMQ."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest
from kombu.connection import Connection

from worker.client import Client
from worker.jobs.queues import BULK, INTERACTIVE
from worker.jobs.states import State
from worker.queue.app import RUN_JOB, RUN_SHIFT, create_app, queue_name
from worker.queue.bell import PATIENCE_SECONDS, Bell
from worker.settings import Settings

BODY: Final = {"model": "gpt-5.1", "messages": [{"role": "user", "content": "Hello"}]}
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


def queue_of(broker_url: str, queue: str) -> Any:
    settings = Settings.load(broker_url=broker_url)
    name = queue_name(settings, queue)
    return next(one for one in create_app(settings).conf.task_queues if one.name == name)


def test_a_ring_for_a_job_carries_its_id_and_nothing_else(broker_url: str) -> None:
    assert ring(broker_url, lambda bell: bell.ring_job("job_1"))
    message = next_message(broker_url, queue_of(broker_url, INTERACTIVE))
    assert (message.headers["task"], message.headers["id"]) == (RUN_JOB, "job_1")
    assert message.payload[:2] == [["job_1"], {}]
    assert message.content_type == "application/json"


def test_a_ring_for_a_shift_expires(broker_url: str) -> None:
    assert ring(broker_url, lambda bell: bell.ring_shift())
    message = next_message(broker_url, queue_of(broker_url, BULK))
    assert message.headers["task"] == RUN_SHIFT
    assert message.headers["expires"]


def test_a_broker_that_is_away_fails_no_submission() -> None:
    assert ring("redis://127.0.0.1:1/0", lambda bell: bell.ring_shift()) is False
    assert ring("amqp://127.0.0.1:1//", lambda bell: bell.ring_job("job_1")) is False


def test_a_submission_rings_for_its_batch(broker_url: str) -> None:
    with Client(Settings.load(broker_url=broker_url)) as client:
        client.submit_many([BODY])
        message = next_message(broker_url, queue_of(broker_url, BULK))
        assert message.headers["task"] == RUN_SHIFT


def test_a_single_job_is_rung_for_once_its_row_is_there(broker_url: str) -> None:
    with Client(Settings.load(broker_url=broker_url)) as client:
        told = []

        def listen() -> None:
            message = next_message(broker_url, queue_of(broker_url, INTERACTIVE))
            told.append(client.get(message.headers["id"]).state)

        listener = Thread(target=listen)
        listener.start()
        client.submit(BODY)
        listener.join(30)
        assert told == [State.QUEUED]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"])
def test_a_broker_that_hangs_holds_up_no_submission(silent: int, url: str) -> None:
    with Client(Settings.load(broker_url=url.format(silent))) as client:
        began = time.monotonic()
        job = client.submit(BODY)
        assert time.monotonic() - began < 20  # the transport alone would wait for thirty
        assert client.get(job.id).state is State.QUEUED


def test_while_one_ring_hangs_no_other_waits_as_long(silent: int) -> None:
    with create_app(Settings.load(broker_url=f"redis://127.0.0.1:{silent}/0")) as app:
        bell = Bell(app)
        assert not bell.ring_shift()
        began = time.monotonic()
        assert not any(bell.ring_job(f"job_{n}") for n in range(20))
        assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_program_can_end_while_its_broker_hangs(silent: int, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(BODY))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CHATQUEUE_BROKER_URL": f"redis://127.0.0.1:{silent}/0",
    }
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "worker", "submit", "one.jsonl"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.fullmatch(r"batch_\w+\n", done.stdout)  # and the warning is not among it
    assert "lost" in done.stderr
    assert time.monotonic() - began < 25


def test_installations_of_other_prefixes_hear_nothing_of_each_other(broker_url: str) -> None:
    ours = Settings.load(broker_url=broker_url, queue_prefix="other")
    with create_app(ours) as app:
        assert Bell(app).ring_shift()
        with app.connection_for_read() as connection:
            queue = queue_of(broker_url, BULK)
            assert bound(queue, connection).get() is None
            own = next(one for one in app.conf.task_queues if one.name == queue_name(ours, BULK))
            message = bound(own, connection).get(no_ack=True)
    assert message.headers["task"] == RUN_SHIFT


def bound(queue: Any, connection: Any) -> Any:
    there = queue(connection.default_channel)
    there.declare()
    return there
