"""Making calls: one HTTP client per process, on one event loop; every failure comes back a value.

Used by `worker.execution`. It knows endpoints, bodies and answers, but no job; it never retries
and never follows a redirect (which would carry the key elsewhere).
"""

import asyncio
import time
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from worker.jobs.outcomes import Exchange, Outcome, Phase
from worker.upstream.answers import read_answer
from worker.upstream.faults import TransportFault, read_failure, transport_failure
from worker.upstream.streams import StreamAssembler

PATH: Final = "/v1/chat/completions"
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
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
    (httpx.DecodingError, TransportFault.DECODING),
    (aiohttp.ClientOSError, TransportFault.RESET),
    (aiohttp.ClientError, TransportFault.DISCONNECTED),
    (OSError, TransportFault.RESET),
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds: to connect, of silence in a stream, and for a call as a whole."""

    connect: float
    idle: float
    call: float


class _TooLargeError(Exception):
    """The answer is larger than any answer should be."""


class Upstream:
    """The API, at whatever endpoint a call names. To be used from one event loop only."""

    def __init__(self, key: SecretStr, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._headers = {
            "Authorization": f"Bearer {key.get_secret_value()}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": "chatqueue",
        }
        self._urls: dict[str, httpx.URL] = {}
        self._tls = httpx.create_ssl_context()
        self._transport = AiohttpTransport(client=self._session)

    def _session(self) -> aiohttp.ClientSession:
        """Open the connection pool, in the running loop. The slots limit it, not the pool."""
        connector = aiohttp.TCPConnector(
            limit=0, ssl=self._tls, keepalive_timeout=KEEPALIVE_SECONDS, ttl_dns_cache=60
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Looked up once: the lookup for every call costs more than the rest of its headers.
            trust_env=bool(urllib.request.getproxies()),
        )

    async def call(
        self, endpoint: str, body: str, *, stream: bool, idempotency_key: str
    ) -> Exchange:
        """POST a chat-completion request to a base URL. Cancelling it closes the connection."""
        started = time.monotonic()
        request = self._request(endpoint, body, stream=stream, idempotency_key=idempotency_key)
        progress = _Progress(started)
        try:
            async with asyncio.timeout(self._timeouts.call):
                outcome = await self._exchange(request, progress, stream=stream)
        except (httpx.HTTPError, aiohttp.ClientError, OSError, _TooLargeError) as error:
            outcome = progress.failed(_fault_of(error), str(error) or type(error).__name__)
        return Exchange(outcome, endpoint, time.monotonic() - started)

    def _request(
        self, endpoint: str, body: str, *, stream: bool, idempotency_key: str
    ) -> httpx.Request:
        # Only a stream lives by its silences: a plain call may think in silence to its end.
        silence = self._timeouts.idle if stream else self._timeouts.call
        return httpx.Request(
            "POST",
            self._url(endpoint),
            headers={**self._headers, "Idempotency-Key": idempotency_key},
            content=body.encode(),
            extensions={"timeout": {"connect": self._timeouts.connect, "read": silence}},
        )

    def _url(self, endpoint: str) -> httpx.URL:
        # There are few endpoints and many calls, and a URL takes long to parse.
        url = self._urls.get(endpoint)
        if url is None:
            url = self._urls[endpoint] = httpx.URL(endpoint + PATH)
        return url

    async def _exchange(
        self, request: httpx.Request, progress: "_Progress", *, stream: bool
    ) -> Outcome:
        response = await self._transport.handle_async_request(request)
        progress.status = response.status_code
        try:
            content_type = response.headers.get("content-type", "")
            if stream and response.is_success and content_type.startswith("text/event-stream"):
                return await _read_stream(response, progress)
            return _read_reply(response, await _read_body(response))
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _Progress:
    """How far a call has come, for the failure that may end it."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.status: int | None = None
        self.assembler: StreamAssembler | None = None

    def failed(self, fault: TransportFault, message: str) -> Outcome:
        """Say what a broken call came to: what a stream has brought counts, and is kept."""
        if self.assembler is not None:
            return self.assembler.broken(fault, message)
        phase = None if self.status is None else Phase.ANSWERING
        return transport_failure(fault, message, phase=phase, status=self.status)


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


async def _read_body(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _TooLargeError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_reply(response: httpx.Response, body: bytes) -> Outcome:
    if response.is_success:
        return read_answer(response.status_code, response.headers, body)
    return read_failure(response.status_code, response.headers, body, now=datetime.now(UTC))


async def _read_stream(response: httpx.Response, progress: _Progress) -> Outcome:
    assembler = StreamAssembler(response.status_code, response.headers)
    progress.assembler = assembler
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _TooLargeError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        began = assembler.began
        assembler.feed(part)
        if assembler.began and not began:
            assembler.first_token_seconds = time.monotonic() - progress.started
        if assembler.done:
            break
    return assembler.finish()
