"""One connection of the simulator's HTTP server: parses requests, plays deliveries.

HTTP server code is written here, on httptools, only because the faults need control of the
connection (resets, cut bodies, drips) and benchmarks need thousands of answers a second on one
core. Made by `worker.simulator.server`, one for each connection accepted. It never looks into a
request: what is answered is its `Responder`'s business.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

from worker.simulator.deliveries import Delivery, End, whole
from worker.simulator.faults import error_body
from worker.simulator.ledger import Call

_NO_LINGER: Final = struct.pack("ii", 1, 0)  # closing then sends RST instead of FIN


@dataclass(slots=True)
class Request:
    """One request, whole. `too_large`: the body went over the limit and was thrown away."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    too_large: bool

    def header(self, name: bytes) -> str | None:
        """Give a header by its name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(slots=True)
class Reply:
    """What is delivered after a wait. `call`: its entry in the ledger, if it has one."""

    delivery: Delivery
    wait_seconds: float = 0.0
    call: Call | None = None


class Responder(Protocol):
    """Decides what is answered."""

    def body_limit(self) -> int:
        """Give the largest body that is kept, in bytes."""

    def respond(self, request: Request) -> Reply:
        """Decide on a request; it is then under way until `leave`."""

    def leave(self, reply: Reply, *, answered: bool, disconnected: bool) -> None:
        """Take note of how it ended."""


class Connection(asyncio.Protocol):
    """Answers one request after the other; those that come early wait their turn."""

    def __init__(self, responder: Responder, connections: set["Connection"]) -> None:
        self._responder = responder
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._reply: Reply | None = None
        self._keep_alive = True
        self._pending: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be accepted."""
        # uvloop's transports are no subclasses of asyncio's, so this cannot be asserted
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Drop what was under way."""
        self._connections.discard(self)
        self._waiting.clear()
        self._writable.set()
        if self._pending is not None:
            self._pending.cancel()
        self._leave(answered=False, disconnected=True)
        self.gone.set()

    def abort(self) -> None:
        """Break off from this side."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            body = error_body(f"This is not HTTP: {error}", "invalid_request_error", None)
            self._transport.write(_payload(whole(400, body)))
            self._transport.close()

    def pause_writing(self) -> None:
        """Let the pieces of a long answer wait: the client reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on with them."""
        self._writable.set()

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._limit = self._responder.body_limit()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Let the body come, if the client asks first."""
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, unless it is too much: then the rest is read and dropped."""
        self._size += len(body)
        if self._size <= self._limit:
            self._body.append(body)
        else:
            self._body.clear()

    def on_message_complete(self) -> None:
        """Answer, or let the request wait for those before it."""
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            self._parser.should_keep_alive(),
            self._size > self._limit,
        )
        self._body = []
        if self._reply is None and not self._waiting:
            self._begin(request)
        else:
            self._waiting.append(request)

    # The answer

    def _begin(self, request: Request) -> None:
        self._keep_alive = request.keep_alive
        self._reply = reply = self._responder.respond(request)
        if reply.wait_seconds > 0:
            self._pending = self._loop.call_later(reply.wait_seconds, self._deliver, reply.delivery)
        else:
            self._deliver(reply.delivery)

    def _deliver(self, delivery: Delivery) -> None:
        if isinstance(delivery.payload, bytes):
            self._pending = None
            self._transport.write(delivery.payload)
            self._end(delivery.end)
        else:
            self._pending = self._loop.create_task(self._play(delivery, delivery.payload))

    async def _play(self, delivery: Delivery, pieces: Iterable[bytes]) -> None:
        """Send piece by piece; cancelled when the client goes."""
        pause = 0.0
        for number, piece in enumerate(pieces):
            if pause:
                await asyncio.sleep(pause)
            await self._writable.wait()
            self._transport.write(piece)
            pause = delivery.pause_seconds if number else delivery.first_pause_seconds
        self._pending = None
        self._end(delivery.end)

    def _end(self, end: End) -> None:
        if end is End.HANG:
            return
        self._leave(answered=end is End.KEEP, disconnected=False)
        if end is End.RESET:
            self._reset()
        elif end is End.CLOSE or not self._keep_alive:
            self._transport.close()
        elif self._waiting:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._reply is None and self._waiting:
            self._begin(self._waiting.popleft())

    def _reset(self) -> None:
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def _leave(self, *, answered: bool, disconnected: bool) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            self._responder.leave(reply, answered=answered, disconnected=disconnected)


def _payload(delivery: Delivery) -> bytes:
    return delivery.payload if isinstance(delivery.payload, bytes) else b"".join(delivery.payload)
