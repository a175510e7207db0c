"""How an answer or a fault goes over the wire: status line, headers, pieces, pauses and end.

Called by `worker.simulator.service`; played by `worker.simulator.connection`. Pure: it says what
is to be sent, and sends nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from itertools import chain, repeat
from typing import Final

import msgspec

from worker.simulator.answers import AnswerMessage, Choice, Completion, encode
from worker.simulator.behaviour import Behaviour
from worker.simulator.faults import (
    OK,
    REQUEST_ID,
    STATUS_FAULTS,
    StatusFault,
    error_body,
    html_page,
)
from worker.simulator.streams import DONE, data, events

Headers = tuple[tuple[str, str], ...]

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_HTML: Final = "text/html; charset=UTF-8"
_PIECE: Final = 1 << 16
_FILLED: Final = "FILLED"
_PHRASES: Final[Mapping[int, str]] = {status.value: status.phrase for status in HTTPStatus}


class End(Enum):
    """What becomes of the connection after the last piece."""

    KEEP = auto()  # the answer is whole: the next request may come
    CLOSE = auto()  # FIN
    RESET = auto()  # RST
    HANG = auto()  # nothing more, until the client goes


@dataclass(frozen=True, slots=True)
class Delivery:
    """`payload` in one piece, or in pieces with a pause after the first and between the others.

    `status` is 0 when none is sent.
    """

    status: int
    payload: bytes | Iterable[bytes]
    end: End = End.KEEP
    first_pause_seconds: float = 0.0
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """All that a delivery depends on besides the name of the fault."""

    behaviour: Behaviour
    completion: Completion
    headers: Headers
    request_id: str
    stream: bool
    include_usage: bool
    retry_after_seconds: float


def head(status: int, content_type: str, headers: Headers, length: int | None) -> bytes:
    """Give the status line and the headers; no length means chunks."""
    phrase = _PHRASES.get(status, "Unknown")
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    line = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\n{size}\r\n{more}\r\n"
    return line.encode("latin-1")


def whole(status: int, body: bytes, content_type: str = JSON, headers: Headers = ()) -> Delivery:
    """Give an answer in one piece."""
    return Delivery(status, head(status, content_type, headers, len(body)) + body)


def retry_after(seconds: float) -> Headers:
    """Give the headers that ask for a wait: whole seconds, and exact milliseconds."""
    if not seconds:
        return ()
    milliseconds = math.ceil(seconds * 1000)
    return (("retry-after", str(math.ceil(seconds))), ("retry-after-ms", str(milliseconds)))


def deliver(fault: str, told: Told) -> Delivery:
    """Carry out "ok" or any fault."""
    if fault == OK:
        return _answer(told)
    if status_fault := STATUS_FAULTS.get(fault):
        return _status(status_fault, told)
    return CARRIED_OUT[fault](told)


def _answer(told: Told) -> Delivery:
    if told.stream:
        return _stream(told, _events(told))
    return whole(200, encode(told.completion), headers=told.headers)


def _status(fault: StatusFault, told: Told) -> Delivery:
    wait = retry_after(told.retry_after_seconds) if fault.waits else ()
    body = fault.body.replace(REQUEST_ID, told.request_id.encode())
    return whole(fault.status, body, fault.content_type, told.headers + fault.headers + wait)


def _events(told: Told) -> list[bytes]:
    chunks = told.behaviour.chunks
    return events(told.completion, chunks=chunks, include_usage=told.include_usage)


def _stream(
    told: Told, parts: list[bytes], end: End = End.KEEP, last: bytes = b"0\r\n\r\n"
) -> Delivery:
    """Give a stream; without pauses it is one piece, else the head goes with the first event."""
    first, pause = told.behaviour.time_to_first_token_seconds, told.behaviour.chunk_seconds
    top = head(200, EVENTS, told.headers, None)
    if not pause:
        parts = [parts[0], b"".join(parts[1:])] if first else [b"".join(parts)]
    chunks = [_chunk(part) for part in parts]
    chunks[0] = top + chunks[0]
    chunks[-1] += last
    return Delivery(200, chunks if len(chunks) > 1 else chunks[0], end, first, pause)


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def _broken_off(end: End, _: Told) -> Delivery:
    return Delivery(0, b"", end)


def _cut_body(told: Told) -> Delivery:
    body = encode(told.completion)
    top = head(200, JSON, told.headers, len(body))
    return Delivery(200, top + body[: len(body) // 2], End.CLOSE)


def _cut(end: End, last: bytes, told: Told) -> Delivery:
    """Cut before the end is told; of a plain answer, in the middle."""
    if not told.stream:
        return _cut_body(told)
    parts = _events(told)
    return _stream(told, parts[: max(1, len(parts) // 2 - 1)], end, last)


def _slow_drip(told: Told) -> Delivery:
    """Send the head at once, then the body byte by byte."""
    stream = told.stream
    body = b"".join(_events(told)) if stream else encode(told.completion)
    top = head(200, EVENTS if stream else JSON, told.headers, len(body))
    drops = (body[place : place + 1] for place in range(len(body)))
    pause = told.behaviour.drip_seconds
    return Delivery(200, chain((top,), drops), End.KEEP, pause, pause)


def _body_200(body: bytes, content_type: str, told: Told) -> Delivery:
    return whole(200, body, content_type, told.headers)


def _error_200(told: Told) -> Delivery:
    return _body_200(_upstream_error(), JSON, told)


def _upstream_error() -> bytes:
    return error_body("The upstream failed.", "upstream_error", "upstream_error")


def _huge(told: Told) -> Delivery:
    """Send an answer whose content is filled up to the size, in pieces."""
    choice = Choice(0, AnswerMessage(_FILLED), "stop")
    completion = msgspec.structs.replace(told.completion, choices=[choice])
    parts = events(completion, chunks=1, include_usage=told.include_usage)
    text = b"".join(parts) if told.stream else encode(completion)
    before, _, after = text.partition(_FILLED.encode())
    filler = max(0, told.behaviour.huge_bytes - len(before) - len(after))
    length = len(before) + filler + len(after)
    top = head(200, EVENTS if told.stream else JSON, told.headers, length)
    full, rest = divmod(filler, _PIECE)
    pieces = chain((top + before,), repeat(b"x" * _PIECE, full), (b"x" * rest + after,))
    return Delivery(200, pieces)


def _bad_utf8(told: Told) -> Delivery:
    return _spoilt(told, lambda body: body.replace(b'"assistant"', b'"assist\xff\xfeant"', 1))


def _bad_json(told: Told) -> Delivery:
    return _spoilt(told, lambda body: body[: len(body) // 2])


def _spoilt(told: Told, spoil: Callable[[bytes], bytes]) -> Delivery:
    """Spoil a plain answer, or the first event of a stream."""
    if not told.stream:
        return whole(200, spoil(encode(told.completion)), headers=told.headers)
    first, *others = _events(told)
    payload = first.removeprefix(b"data: ").partition(b"\n\n")[0]
    return _stream(told, [data(spoil(payload)), *others])


def _redirect(told: Told) -> Delivery:
    elsewhere = (("location", "https://elsewhere.invalid/v1/chat/completions"),)
    return whole(307, b"", "text/plain", told.headers + elsewhere)


def _stream_error_event(told: Told) -> Delivery:
    if not told.stream:
        return _error_200(told)
    parts = _events(told)
    parts = parts[: max(1, len(parts) // 2 - 1)]
    return _stream(told, [*parts, data(_upstream_error()), DONE])


CARRIED_OUT: Final[Mapping[str, Callable[[Told], Delivery]]] = {
    "reset": partial(_broken_off, End.RESET),
    "close": partial(_broken_off, End.CLOSE),
    "hang": partial(_broken_off, End.HANG),
    "cut_body": partial(_cut, End.CLOSE, b""),
    "cut_stream": partial(_cut, End.KEEP, b"0\r\n\r\n"),
    "cut_stream_abrupt": partial(_cut, End.CLOSE, b""),
    "cut_stream_done": partial(_cut, End.KEEP, _chunk(DONE) + b"0\r\n\r\n"),
    "slow_drip": _slow_drip,
    "html_200": partial(_body_200, html_page("Just a moment..."), _HTML),
    "error_200": _error_200,
    "huge": _huge,
    "bad_utf8": _bad_utf8,
    "bad_json": _bad_json,
    "redirect": _redirect,
    "empty_200": partial(_body_200, b"", JSON),
    "stream_error_event": _stream_error_event,
    # these two are answers: `service` has them made with that ending
    "content_filter": _answer,
    "length": _answer,
}
"""Every fault that is not a mere status."""
