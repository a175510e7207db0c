"""Making calls: one HTTP client per process, on one event loop; every failure comes back a value.

Used by `worker.execution`. It knows endpoints, bodies and answers, but no job; it never retries
and never follows a redirect (which would carry the key elsewhere).
"""

import asyncio
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from worker.jobs.outcomes import Answer, ErrorClass, Exchange, Failure, Outcome, Phase, RateLimits
from worker.upstream.answers import read_answer
from worker.upstream.faults import TransportFault, read_failure, transport_failure
from worker.upstream.streams import StreamAssembler
from worker.upstream.waits import read_rate_limits

PATH: Final = "/v1/chat/completions"
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
MAX_REFUSAL_BYTES: Final = 1024 * 1024
KEEPALIVE_SECONDS: Final = 60.0

# The transport folds aiohttp's exceptions into httpx's, and some to the wrong side of the border
# between "never sent" and "maybe billed"; so the cause is what is read. First match counts.
_CAUSES: Final[tuple[tuple[type[BaseException], TransportFault], ...]] = (
    (aiohttp.ClientConnectorDNSError, TransportFault.DNS),
    (aiohttp.ClientConnectorCertificateError, TransportFault.TLS),
    (aiohttp.ClientConnectorSSLError, TransportFault.TLS),
    (aiohttp.ClientConnectorError, TransportFault.CONNECTION_REFUSED),
    (aiohttp.ConnectionTimeoutError, TransportFault.CONNECT_TIMEOUT),
    (aiohttp.SocketTimeoutError, TransportFault.READ_TIMEOUT),
    (aiohttp.ServerTimeoutError, TransportFault.READ_TIMEOUT),
    (aiohttp.ServerDisconnectedError, TransportFault.DISCONNECTED),
    (aiohttp.ClientPayloadError, TransportFault.PAYLOAD_CUT),
    (zlib.error, TransportFault.DECODING),
    (aiohttp.ClientOSError, TransportFault.RESET),
    (aiohttp.ClientError, TransportFault.DISCONNECTED),
    (OSError, TransportFault.RESET),
    # The transport raises it for a status line that is not UTF-8.
    (UnicodeError, TransportFault.DISCONNECTED),
)
_GZIP: Final = frozenset({"gzip", "x-gzip", "deflate"})
_BREAKS: Final = (httpx.HTTPError, aiohttp.ClientError, OSError, UnicodeError, zlib.error)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds: to connect, of silence in a stream, and for a call as a whole.

    Of a stream the last one is the longest time without an event: one that goes on may go on.
    """

    connect: float
    idle: float
    call: float


class _TooLargeError(Exception):
    """The answer is larger than any answer should be."""


class _Connector(aiohttp.TCPConnector):
    """A pool that gives out no connection on which something came unasked.

    aiohttp would take it for the answer to the next request: that job would get another's answer,
    or the farewell to nobody ("408 Request Timeout") that proxies send before they close.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # it is aiohttp's
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        while self._is_spoilt(connection.protocol):
            connection.close()
            connection = await super().connect(req, traces, timeout)
        return connection

    def _is_spoilt(self, protocol: ResponseHandler | None) -> bool:
        if protocol is None:
            return False
        if protocol in self._used:
            return protocol.should_close
        # What a hasty server sends over a new connection is for the request that opened it.
        self._used.add(protocol)
        return False


class Upstream:
    """The API, at whatever endpoint a call names. To be used from one event loop only."""

    def __init__(self, keys: Mapping[str, SecretStr], timeouts: Timeouts) -> None:
        """`keys`: which key each base URL is given. To others nothing is sent."""
        self._timeouts = timeouts
        self._headers = {endpoint: _headers(key) for endpoint, key in keys.items()}
        self._urls: dict[str, httpx.URL] = {}
        self._tls = httpx.create_ssl_context()
        self._transport = AiohttpTransport(client=self._session)

    def _session(self) -> aiohttp.ClientSession:
        """Open the connection pool, in the running loop. The slots limit it, not the pool."""
        connector = _Connector(
            limit=0, ssl=self._tls, keepalive_timeout=KEEPALIVE_SECONDS, ttl_dns_cache=60
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Looked up once: the lookup for every call costs more than the rest of its headers.
            trust_env=bool(urllib.request.getproxies()),
        )

    async def call(
        self,
        endpoint: str,
        body: str,
        *,
        stream: bool,
        idempotency_key: str,
        patient: bool = False,
    ) -> Exchange:
        """POST a chat-completion request to a base URL. Cancelling it closes the connection.

        A `patient` stream may be silent as long as a plain call: its job asked for none.
        """
        started = time.monotonic()
        if endpoint not in self._headers:
            return Exchange(_unknown(endpoint), endpoint, 0.0)
        # Only a stream lives by its silences: a plain call may think in silence to its end.
        silence = self._timeouts.idle if stream and not patient else self._timeouts.call
        request = self._request(endpoint, body, silence, idempotency_key)
        progress = _Progress(started)
        try:
            async with asyncio.timeout(self._timeouts.call) as progress.deadline:
                outcome = await self._exchange(request, progress, stream=stream)
        except (*_BREAKS, _TooLargeError) as error:
            outcome = progress.failed(_fault_of(error), str(error))
        return Exchange(outcome, endpoint, time.monotonic() - started, progress.limits)

    def _request(
        self, endpoint: str, body: str, silence: float, idempotency_key: str
    ) -> httpx.Request:
        headers = httpx.Headers(self._headers[endpoint], "ascii")
        headers["Idempotency-Key"] = idempotency_key
        # As a stream that is read: of content given as such httpx would look for a form, and add
        # the headers that aiohttp adds anyway.
        request = httpx.Request(
            "POST",
            self._url(endpoint),
            headers=headers,
            stream=httpx.ByteStream(body.encode()),
            extensions={"timeout": {"connect": self._timeouts.connect, "read": silence}},
        )
        request.read()
        return request

    def _url(self, endpoint: str) -> httpx.URL:
        # There are few endpoints and many calls, and a URL takes long to parse.
        url = self._urls.get(endpoint)
        if url is None:
            url = self._urls[endpoint] = httpx.URL(endpoint + PATH)
        return url

    async def _exchange(
        self, request: httpx.Request, progress: "_Progress", *, stream: bool
    ) -> Outcome:
        reply = progress.reply = _Reply(await self._transport.handle_async_request(request))
        progress.limits = read_rate_limits(reply.headers)
        try:
            if not reply.is_success:
                # What it says is clear from its status: nobody waits long for the rest.
                async with asyncio.timeout(self._timeouts.idle):
                    body = await _read_body(reply, progress, MAX_REFUSAL_BYTES)
                return read_failure(reply.status, reply.headers, body, now=_now())
            if reply.is_stream(asked=stream):
                return await self._read_stream(reply, progress)
            body = await _read_body(reply, progress, MAX_ANSWER_BYTES)
            return read_answer(reply.status, reply.headers, body, now=_now())
        finally:
            await reply.body.aclose()

    async def _read_stream(self, reply: "_Reply", progress: "_Progress") -> Outcome:
        assembler = StreamAssembler(reply.status, reply.headers, now=_now())
        progress.assembler = assembler
        inflow = _Inflow(reply, MAX_ANSWER_BYTES)
        async for piece in reply.body:
            began, events = assembler.began, assembler.events
            assembler.feed(inflow.take(piece))
            if assembler.began and not began:
                assembler.first_token_seconds = time.monotonic() - progress.started
            if assembler.done:
                break
            if assembler.events > events:
                progress.go_on(self._timeouts.call)
        return assembler.finish()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _Reply:
    """A reply whose status and headers are here. `headers`: by their names in lower case.

    httpx's own view of them searches the list for each name, and its way of reading a body wraps
    each piece once more.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: dict[str, str] = {}
        for raw_name, raw_value in response.headers.raw:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            known = self.headers.get(name)
            self.headers[name] = value if known is None else f"{known}, {value}"
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101  # of this transport
        self.body = response.stream

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def is_stream(self, *, asked: bool) -> bool:
        """Tell by the content type, where it tells; one that nobody asked for is one too."""
        kind = self.headers.get("content-type", "").lower()
        return "event-stream" in kind or (asked and "json" not in kind and "html" not in kind)


class _Progress:
    """How far a call has come, for the failure that may end it."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.reply: _Reply | None = None
        self.limits: RateLimits | None = None
        self.parts: list[bytes] = []
        self.deadline: asyncio.Timeout | None = None
        self.assembler: StreamAssembler | None = None
        self._prolong_from = 0.0

    def go_on(self, seconds: float) -> None:
        """Let the call go on for so long from now, or a twentieth longer.

        A timer moved for each event of a stream costs about as much as reading the event.
        """
        now = time.monotonic()
        if now >= self._prolong_from and self.deadline is not None:
            slack = seconds / 20
            self._prolong_from = now + slack
            self.deadline.reschedule(asyncio.get_running_loop().time() + seconds + slack)

    def failed(self, fault: TransportFault, message: str) -> Outcome:
        """Say what a broken call came to: what has come by then counts, and is kept."""
        if self.assembler is not None:
            return self.assembler.broken(fault, message)
        if self.reply is None:
            return transport_failure(fault, message)
        status, headers, body = self.reply.status, self.reply.headers, self.body()
        if not self.reply.is_success:
            return read_failure(status, headers, body, now=_now())
        if body.rstrip().endswith(b"}"):  # it may be whole, and need not be bought again
            outcome = read_answer(status, headers, body, now=_now())
            if isinstance(outcome, Answer):
                return outcome
        return transport_failure(fault, message, phase=Phase.ANSWERING, status=status)

    def body(self) -> bytes:
        """Give what came of a body in one piece."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


def _headers(key: SecretStr) -> httpx.Headers:
    return httpx.Headers(
        {
            "Authorization": f"Bearer {key.get_secret_value()}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": "chatqueue",
        }
    )


def _unknown(endpoint: str) -> Failure:
    """Refuse to send the key to a place that whoever runs the worker has not named."""
    return Failure(
        ErrorClass.PERMANENT,
        "endpoint_not_configured",
        f"{endpoint} is neither an endpoint of this worker's settings nor has it a key of its own",
        Phase.CONNECTING,
    )


def _fault_of(error: BaseException) -> TransportFault:
    if isinstance(error, _TooLargeError):
        return TransportFault.TOO_LARGE
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
        return TransportFault.TOTAL_TIMEOUT
    cause = error.__cause__ if isinstance(error, httpx.TransportError) else error
    for kind, fault in _CAUSES:
        if isinstance(cause, kind):
            return fault
    return TransportFault.RESET


class _Inflow:
    """What comes of a body, piece by piece, as long as it is not too large.

    gzip is undone though nobody asked for it, but one layer of it: two can hide a gigabyte in a
    single piece. `take` raises zlib.error, and like the constructor _TooLargeError.
    """

    def __init__(self, reply: _Reply, most: int) -> None:
        self._most = most
        self._size = 0
        self._inflate: Callable[[bytes], bytes] | None = None
        if reply.headers.get("content-encoding", "").lower() in _GZIP:
            self._inflate = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS).decompress
        self._check(int(reply.headers.get("content-length") or 0))

    def take(self, piece: bytes) -> bytes:
        """Give what a piece holds."""
        if self._inflate is not None:
            piece = self._inflate(piece)
        self._size += len(piece)
        self._check(self._size)
        return piece

    def _check(self, size: int) -> None:
        if size > self._most:
            raise _TooLargeError(f"the answer is larger than {self._most} bytes")


async def _read_body(reply: _Reply, progress: _Progress, most: int) -> bytes:
    inflow = _Inflow(reply, most)
    async for piece in reply.body:
        progress.parts.append(inflow.take(piece))
    return progress.body()


def _now() -> datetime:
    return datetime.now(UTC)
