"""`chatqueue prove` as a user types it: what it runs, what it leaves, what it says."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from kombu.connection import Connection

from tests.conftest import wait_until
from tests.e2e.conftest import Shell

SEED = "11"


@pytest.fixture(autouse=True)
def temporary(shell: Shell) -> Iterator[Path]:
    """Where it puts its folder, which a test can then look for: short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="cq-") as folder:
        shell.variables["TMPDIR"] = folder
        yield Path(folder)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that works in a folder or names it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        here = str(process.info["cwd"] or "").startswith(str(folder)) or str(folder) in words
        if here and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process)
    return found


def proved(shell: Shell, *words: str) -> dict[str, Any]:
    done = shell.run("prove", "--short", "--seed", SEED, "--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def check(said: dict[str, Any]) -> None:
    counted = {line["name"]: line["value"] for line in said["counted"]}
    assert said["holds"] is True
    assert (said["seed"], counted["jobs"], counted["lost"]) == (int(SEED), said["jobs"], 0)
    assert counted["calls"] >= said["jobs"] // 2
    assert {one["times"] for one in said["recoveries"]} == {1}


@pytest.mark.timeout(400)
def test_the_short_form_holds_and_leaves_nothing_behind(shell: Shell, temporary: Path) -> None:
    check(proved(shell))
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []
    assert not (shell.folder / "home").exists()


@pytest.mark.timeout(120)
def test_interrupted_it_ends_all_it_started(shell: Shell, temporary: Path) -> None:
    running = shell.start("prove", "--short")
    wait_until(lambda: "handed in" in shell.log("prove"), "work was handed in", 60)
    assert processes_of(temporary)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.timeout(120)
def test_killed_it_takes_all_it_started_with_it(shell: Shell, temporary: Path) -> None:
    running = shell.start("prove", "--short")
    wait_until(lambda: "handed in" in shell.log("prove"), "work was handed in", 60)
    assert processes_of(temporary)
    running.kill()
    running.wait(60)
    wait_until(lambda: not processes_of(temporary), "everything has ended", 60)


@pytest.mark.parametrize(
    "words",
    [
        ("--database-url", "sqlite:///mine.db"),
        ("--database-url", "postgresql://nobody@127.0.0.1:1/none"),
        ("--broker-url", "kafka://127.0.0.1"),
        ("--broker-url", "redis://127.0.0.1:1/0"),
    ],
)
def test_servers_that_cannot_be_used_are_bad_usage(shell: Shell, words: tuple[str, str]) -> None:
    done = shell.run("prove", "--short", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.services
@pytest.mark.timeout(400)
def test_it_holds_on_postgresql_and_redis_and_leaves_others_data_alone(
    shell: Shell, postgres_service: str, redis_service: str
) -> None:
    url = postgres_service.format("postgres")
    with redis.Redis.from_url(redis_service) as client:
        client.set("somebody's", "data")
        check(proved(shell, "--database-url", url, "--broker-url", redis_service))
        assert client.get("somebody's") == b"data"
        assert list(client.scan_iter("chatqueue-prove*")) == []
    assert schemas(url) == []


@pytest.mark.services
@pytest.mark.timeout(400)
def test_it_holds_on_postgresql_and_rabbitmq_and_leaves_no_queue(
    shell: Shell, postgres_service: str, rabbitmq_service: str
) -> None:
    url = postgres_service.format("postgres")
    connect: Any = Connection
    with connect(rabbitmq_service) as connection:
        connection.SimpleQueue("somebodys").put("data")
        check(proved(shell, "--database-url", url, "--broker-url", rabbitmq_service))
        assert connection.SimpleQueue("somebodys").get(timeout=10).payload == "data"
    assert schemas(url) == []


def schemas(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'chatqueue_prove_%'"
        ).fetchall()
