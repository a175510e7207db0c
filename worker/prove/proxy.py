"""A TCP proxy of our own, so that a server can be made unreachable without touching it.

Put between the workers and a user's database or broker by `worker.prove.places`. While it is cut,
every connection through it is broken and new ones are refused, as while a server restarts. It runs
in a thread of its own, on loopback, and reads nothing of what passes through.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

_PIECE: Final = 64 * 1024
_BACKLOG: Final = 128
_CALL_SECONDS: Final = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """A server: its host or the path of its unix socket, its port, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool = False


class Proxy:
    """Stands in for a target on `127.0.0.1:port`, for the time of a `with`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._pairs: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        # Keeps the port ours while nothing listens on it: bound, but never listening itself.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._place.close()

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._do(self._cut())

    def mend(self) -> None:
        """Let connections through again."""
        self._do(self._mend())

    def _do(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(_CALL_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _mend(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.setblocking(False)  # noqa: FBT003  # its name says what it takes
            self._listener.listen(_BACKLOG)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _cut(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._pairs, return_exceptions=True)
        await asyncio.sleep(0)  # what was closed is let go of in the loop's next turn

    def _accept(self, listener: socket.socket) -> None:
        """Take a connection: asyncio's own server leaks those it is taking while it closes."""
        try:
            accepted, _ = listener.accept()
        except OSError:
            return  # whoever came has gone again
        accepted.setblocking(False)  # noqa: FBT003  # as above
        task = self._loop.create_task(self._connected(accepted))
        self._pairs.add(task)
        task.add_done_callback(self._pairs.discard)

    async def _connected(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        self._open.add(writer)
        try:
            await self._join(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await _connect(self._target)
        except OSError:
            return  # the server is away: so is this stand-in
        self._open.add(far_writer)
        try:
            if self._listener is None:
                return  # cut meanwhile
            ways = {
                asyncio.ensure_future(_pass_on(reader, far_writer)),
                asyncio.ensure_future(_pass_on(far_reader, writer)),
            }
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open.discard(far_writer)
            far_writer.close()


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.host.startswith("/"):
        return await asyncio.open_unix_connection(target.host)
    context = ssl.create_default_context() if target.tls else None
    return await asyncio.open_connection(target.host, target.port, ssl=context)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()


def _bound(port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    return one
