"""Sites: real worker processes on a real broker and a real database, with the simulator as the API.

A site is everything one queue needs, apart from every other site: a database of its own, a number
of its own in Valkey, and workers that end with it (and, by their lifeline, with the test process).
"""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from tests.conftest import READY_SECONDS, Server, wait_until
from tests.integration.servers import Broker
from worker.client import Client
from worker.jobs.states import State
from worker.jobs.views import Batch, Job
from worker.settings import Settings
from worker.simulator import Behaviour, SimulatorThread
from worker.store import schema
from worker.store.engine import Database

KEY: Final = "sk-made-up-key-4c1d"
BATCH_SECONDS: Final = 60.0
PROGRAM: Final = ("-m", "worker", "worker")

_numbers = itertools.cycle(range(1, 16))


class WorkerProcess:
    """One `chatqueue worker`, with its log."""

    def __init__(
        self, settings: Settings, name: str, folder: Path, program: Sequence[str] = PROGRAM
    ) -> None:
        self.log = folder / f"{name}.log"
        lifeline, self._lifeline = os.pipe()
        self._ready, ready = os.pipe()
        options = ["--name", name, "--lifeline-fd", str(lifeline), "--ready-fd", str(ready)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *program, *options],
                env=settings.environment(),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lifeline, ready),
            )
        os.close(lifeline)
        os.close(ready)

    def wait_ready(self) -> None:
        """Wait until it consumes. Fails with its log where it does not."""
        readable, _, _ = select.select([self._ready], [], [], READY_SECONDS)
        if not readable or not os.read(self._ready, 1):
            pytest.fail(f"the worker is not ready:\n{self.log.read_text()}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def events(self) -> list[dict[str, Any]]:
        """What it has logged, line by line: all of it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def told(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of one event that it has logged."""
        wanted = {"event": event, **fields}
        return [one for one in self.events() if wanted.items() <= one.items()]

    def wait_told(self, event: str, seconds: float = READY_SECONDS, **fields: Any) -> None:
        """Wait until it has logged an event."""
        wait_until(lambda: self.told(event, **fields), f"{event} {fields}", seconds)

    def ended(self, seconds: float = READY_SECONDS) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(seconds)

    def close(self) -> None:
        """End it: gently, and then not."""
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for fd in (self._ready, self._lifeline):
            os.close(fd)


class Site:
    """A queue: `client` hands in and reads, `simulator` answers, `start_worker` does the work."""

    def __init__(
        self, folder: Path, database_url: str, broker_url: str, simulator: SimulatorThread
    ) -> None:
        self.folder = folder
        self.simulator = simulator
        self.base: dict[str, Any] = {
            "home": folder / "home",
            "api_key": KEY,
            "database_url": database_url,
            "broker_url": broker_url,
            "text_endpoints": (simulator.url,),
            "multimodal_endpoints": (simulator.url,),
            "drain_seconds": 5.0,
            "log_format": "json",
        }
        self.workers: list[WorkerProcess] = []
        self.client = Client(self.settings())

    def settings(self, **changes: Any) -> Settings:
        """Settings that reach this site, some of them changed."""
        return Settings(**{**self.base, **changes})

    def start_worker(self, name: str = "worker", **changes: Any) -> WorkerProcess:
        """Start a worker and wait until it consumes."""
        worker = self.begin_worker(name, **changes)
        worker.wait_ready()
        return worker

    def begin_worker(
        self, name: str = "worker", program: Sequence[str] = PROGRAM, **changes: Any
    ) -> WorkerProcess:
        """Start a worker."""
        worker = WorkerProcess(self.settings(**changes), name, self.folder, program)
        self.workers.append(worker)
        return worker

    def start_workers(self, *names: str, **changes: Any) -> list[WorkerProcess]:
        """Start workers side by side."""
        started = [self.begin_worker(name, **changes) for name in names]
        for one in started:
            one.wait_ready()
        return started

    def submit(self, bodies: Iterable[Any], name: str = "batch") -> Batch:
        """Enqueue a batch."""
        return self.client.submit_many(bodies, name=name)

    def finished(self, batch: Batch, seconds: float = BATCH_SECONDS) -> Batch:
        """Wait for a batch's end."""
        return self.client.wait_batch(batch.id, seconds)

    def run(self, bodies: Iterable[Any], seconds: float = BATCH_SECONDS) -> list[Job]:
        """Run a batch; return its jobs in the order of its input."""
        batch = self.submit(bodies)
        self.finished(batch, seconds)
        return list(self.client.results(batch.id))

    def states(self, batch: Batch) -> dict[State, int]:
        """Count a batch's jobs by state."""
        return self.client.count(batch.id)

    def calls_of(self, body: str | bytes) -> int:
        """How often the simulator was sent exactly this body."""
        wanted = digest(body)
        return sum(call.body_sha256 == wanted for call in self.simulator.calls())

    def wait_for(self, job_id: str, state: State) -> Job:
        """Wait until a job is in a state."""
        wait_until(lambda: self.client.get(job_id).state is state, f"{job_id} is {state}")
        return self.client.get(job_id)

    def logs(self) -> str:
        """All that the workers wrote."""
        return "".join(worker.log.read_text() for worker in self.workers)

    def close(self) -> None:
        """End the workers and let go of everything."""
        while self.workers:
            self.workers.pop().close()
        self.client.close()


def digest(body: str | bytes) -> str:
    """A body as the simulator's ledger names it."""
    return sha256(body.encode() if isinstance(body, str) else body).hexdigest()[:16]


def plain(text: str, **fields: Any) -> str:
    """The JSON text of a request."""
    body = {"model": "gpt-5.1", "messages": [{"role": "user", "content": text}], **fields}
    return json.dumps(body, ensure_ascii=False)


def scripted(script: str, text: str = "", **fields: Any) -> str:
    """A request that tells the simulator how to treat it."""
    return plain(f"{text or script}", metadata={"simulate": script}, **fields)


def traces(workers: Iterable[WorkerProcess]) -> list[dict[str, Any]]:
    """The lines that hold a stack trace."""
    return [one for worker in workers for one in worker.events() if "exception" in one]


MakeSite = Callable[..., Site]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of this test alone."""
    made = Broker(tmp_path)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def make_site(
    request: pytest.FixtureRequest,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MakeSite]:
    """Make a site: `make_site("sqlite" or "postgres", **behaviour of the simulator)`."""
    with ExitStack() as stack:

        def make(kind: str = "sqlite", broker_url: str | None = None, **behaviour: Any) -> Site:
            url = "sqlite:///{}"
            if kind == "postgres":
                url = request.getfixturevalue("postgres_server")
            database_url = stack.enter_context(Server(url).database())
            with Database(database_url) as database:
                schema.migrate(database)
            simulator = stack.enter_context(SimulatorThread(Behaviour(**behaviour)))
            site = Site(
                tmp_path_factory.mktemp("site"),
                database_url,
                broker_url or _empty_number(valkey_server),
                simulator,
            )
            stack.callback(site.close)
            return site

        yield make


def _empty_number(valkey_server: str) -> str:
    """The URL of an empty database of the Valkey that nothing else of this process uses."""
    number = next(_numbers)
    path = valkey_server.removeprefix("redis+socket://")
    with redis.Redis(unix_socket_path=path, db=number) as client:
        client.flushdb()
    return f"{valkey_server}?virtual_host={number}"


def flush(broker_url: str) -> None:
    """Empty a broker, as FLUSHALL does where only one site uses it."""
    path, _, number = broker_url.removeprefix("redis+socket://").partition("?virtual_host=")
    with redis.Redis(unix_socket_path=path, db=int(number or 0)) as client:
        client.flushdb()
