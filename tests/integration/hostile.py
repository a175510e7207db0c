"""A server that does to its callers whatever a test writes down, down to the byte.

It listens on loopback, in a thread of its own, and ends with its `with`. What the simulator does
over proper HTTP stays there; here is what no HTTP server can be made to send.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Final, Self

STOP_SECONDS: Final = 10.0


class Peer:
    """One connection that was accepted, as an act sees it."""

    def __init__(
        self, server: "Hostile", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """Read one request; return its body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        self._server.heads.append(head)
        lengths = [
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        return await self._reader.readexactly(lengths[0] if lengths else 0)

    async def send(self, data: bytes) -> None:
        """Send bytes, as fast as they are taken."""
        self._server.sent += len(data)
        self._writer.write(data)
        await self._writer.drain()

    async def drip(self, data: bytes, pause_seconds: float) -> None:
        """Send byte by byte."""
        for place in range(len(data)):
            await self.send(data[place : place + 1])
            await asyncio.sleep(pause_seconds)

    async def silence(self) -> None:
        """Keep the connection open and say nothing, until the other side ends it."""
        while await self._reader.read(1 << 16):
            pass

    def end_writing(self) -> None:
        """Close our half."""
        self._writer.write_eof()

    def reset(self) -> None:
        """End the connection by an RST."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Act = Callable[[Peer], Awaitable[None]]
"""What happens on one connection; where it returns, the connection is closed."""


class Hostile:
    """The server. It keeps count of `connections`, `heads` of requests, and bytes `sent`."""

    def __init__(self, act: Act) -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.sent = 0
        self.url = ""
        self._act = act
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=self._main, name="hostile", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._started.result(STOP_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_SECONDS)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        acting: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            acting.add(task)
            self.connections += 1
            try:
                await self._act(Peer(self, reader, writer))
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the caller has gone: most do
            except asyncio.CancelledError:
                pass  # the server ends
            finally:
                acting.discard(task)
                with contextlib.suppress(ConnectionError):
                    writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self._started.set_result(f"http://127.0.0.1:{port}")
        await self._stop.wait()
        server.close()
        while acting:
            for task in tuple(acting):
                task.cancel()
            await asyncio.sleep(0)
        await server.wait_closed()
