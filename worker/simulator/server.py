"""Starts and stops the simulator: in a running loop, in a thread of its own, or as a program.

Called by the CLI (`run`), by tests (`SimulatorThread`, `serve`) and by benchmarks. It listens on
loopback unless told otherwise, and never speaks TLS.
"""

import asyncio
import copy
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from worker.errors import WaitTimeoutError
from worker.simulator.behaviour import Behaviour
from worker.simulator.connection import Connection
from worker.simulator.ledger import Call, Ledger, Summary
from worker.simulator.service import Service

T = TypeVar("T")

_BACKLOG = 4096
_STOP_SECONDS = 10.0


class Simulator:
    """A simulator that listens. Made by `serve`; used from its own loop only."""

    def __init__(
        self, service: Service, server: asyncio.Server, connections: set[Connection]
    ) -> None:
        self._service = service
        self._server = server
        self._connections = connections
        host, port = server.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def ledger(self) -> Ledger:
        """What was asked and answered so far."""
        return self._service.ledger

    @property
    def behaviour(self) -> Behaviour:
        """What is set at this moment."""
        return self._service.behaviour

    def set(self, **fields: Any) -> Behaviour:
        """Patch the behaviour for calls that arrive from now on. Raises SettingsError."""
        return self._service.set(fields)

    def reset(self) -> None:
        """Forget all calls; credits and limits are as at the start."""
        self._service.reset()

    async def close(self) -> None:
        """Stop listening, break off all connections and wait until they are gone."""
        self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.gone.wait()
        await self._server.wait_closed()


async def serve(
    behaviour: Behaviour, host: str = "127.0.0.1", port: int = 0, *, ledger: bool = True
) -> Simulator:
    """Start a simulator in the running loop; port 0 takes a free one.

    `ledger=False` only counts calls. Raises OSError when the address cannot be had.
    """
    service = Service(behaviour, Ledger(keep=ledger))
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(service, connections), host, port, backlog=_BACKLOG
    )
    return Simulator(service, server, connections)


def run(
    behaviour: Behaviour,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[str], None],
    ledger: bool = True,
) -> Summary:
    """Serve until SIGTERM or SIGINT; give the counts at the end.

    `ready` is called with the URL once connections are accepted. Main thread only. Raises OSError.
    """
    return uvloop.run(_run(behaviour, host, port, ready, ledger=ledger))


async def _run(
    behaviour: Behaviour, host: str, port: int, ready: Callable[[str], None], *, ledger: bool
) -> Summary:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    simulator = await serve(behaviour, host, port, ledger=ledger)
    try:
        ready(simulator.url)
        await stop.wait()
    finally:
        await simulator.close()
    return simulator.ledger.summary()


class SimulatorThread:
    """A simulator in a loop of its own; a context manager for tests.

    Its methods may be called from any thread.
    """

    def __init__(self, behaviour: Behaviour | None = None, *, ledger: bool = True) -> None:
        self._behaviour = behaviour or Behaviour()
        self._keep = ledger
        self._started: Future[tuple[Simulator, asyncio.AbstractEventLoop]] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="simulator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._simulator, self._loop = self._started.result(_STOP_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)

    @property
    def url(self) -> str:
        """Where it listens, without a path: `http://127.0.0.1:PORT`."""
        return self._simulator.url

    def calls(self) -> list[Call]:
        """Give copies of all records of the ledger, in order of arrival."""
        return self._do(lambda: [copy.copy(call) for call in self._simulator.ledger.calls()])

    def summary(self) -> Summary:
        """Give the counts."""
        return self._do(self._simulator.ledger.summary)

    def set(self, **fields: Any) -> Behaviour:
        """Patch the behaviour for calls that arrive from now on. Raises SettingsError."""
        return self._do(lambda: self._simulator.set(**fields))

    def reset(self) -> None:
        """Forget all calls; credits and limits are as at the start."""
        self._do(self._simulator.reset)

    def wait_for(
        self, condition: Callable[[Summary], bool], timeout_seconds: float = 5.0
    ) -> Summary:
        """Wait until the counts are as wanted. Raises WaitTimeoutError, with the counts."""
        deadline = time.monotonic() + timeout_seconds
        while not condition(summary := self.summary()):
            if time.monotonic() > deadline:
                raise WaitTimeoutError(f"not within {timeout_seconds} s: {summary}")
            time.sleep(0.005)
        return summary

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(_STOP_SECONDS)

    def _main(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        try:
            simulator = await serve(self._behaviour, ledger=self._keep)
        except BaseException as error:
            self._started.set_exception(error)
            raise
        self._started.set_result((simulator, asyncio.get_running_loop()))
        await self._stop.wait()
        await simulator.close()
