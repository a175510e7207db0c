"""Endpoints that keep to no rule: a call to one ends as a value, in time and in little memory."""

import asyncio
import gzip
import json
import random
import socket
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from pydantic import SecretStr

from tests.integration.conftest import KEY, MakeSite, plain
from tests.integration.hostile import Act, Hostile, Peer
from worker.jobs.outcomes import Answer, ErrorClass, Exchange, Failure, Outcome, Phase
from worker.jobs.states import State
from worker.upstream.client import MAX_ANSWER_BYTES, Timeouts, Upstream

DIVERT, PERMANENT, PAUSE, RETRY = (
    ErrorClass.DIVERT,
    ErrorClass.PERMANENT,
    ErrorClass.PAUSE,
    ErrorClass.RETRY,
)
TIMEOUTS: Final = Timeouts(connect=3.0, idle=1.5, call=3.0)
GRACE_SECONDS: Final = 5.0  # of a busy machine, before a call counts as one that hangs
JSON: Final = b"content-type: application/json"
EVENTS: Final = b"content-type: text/event-stream"
CLOSE: Final = b"connection: close"
CHUNKED: Final = b"transfer-encoding: chunked"


def answer(text: str = "A whole answer.") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "c-1", "model": "gpt-5.1", "choices": [choice]}).encode()


def event(text: str | None = None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c-1", "choices": [choice]}).encode() + b"\n\n"


ANSWER: Final = answer()
STREAM: Final = event("A whole ") + event("answer.") + event(finish="stop") + b"data: [DONE]\n\n"
HALF_STREAM: Final = event("Half of ") + event("an ")


def head(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((version + b" " + status, *lines, b"", b""))


def length(body: bytes | int) -> bytes:
    return b"content-length: %d" % (body if isinstance(body, int) else len(body))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(*lines: bytes, body: bytes = ANSWER, status: bytes = b"200 OK") -> bytes:
    return head(*lines, length(body), status=status) + body


# --- acts -----------------------------------------------------------------------------------------


def sends(*pieces: bytes) -> Act:
    """Read the request, send these, and close."""

    async def act(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)

    return act


def sends_and_hangs(*pieces: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await sends(*pieces)(peer)
        await peer.silence()

    return act


def sends_and_resets(*pieces: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await sends(*pieces)(peer)
        await asyncio.sleep(0.02)  # or the reset overtakes what was sent
        peer.reset()

    return act


def sends_and_half_closes(*pieces: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await sends(*pieces)(peer)
        peer.end_writing()
        await peer.silence()

    return act


def drips(top: bytes, body: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await sends(top)(peer)
        await peer.drip(body, 0.2)

    return act


def repeats(top: bytes, piece: bytes, pause_seconds: float = 0.0) -> Act:
    """Send a piece again and again, without an end."""

    async def act(peer: Peer) -> None:
        await sends(top)(peer)
        while True:
            await peer.send(piece)
            await asyncio.sleep(pause_seconds)

    return act


async def answers_unasked(peer: Peer) -> None:
    """Answer before the request is read, and never read it."""
    await peer.send(whole(JSON, body=b"{}", status=b"413 Too Large"))
    await asyncio.sleep(GRACE_SECONDS)


async def hangs_at_once(_: Peer) -> None:
    await asyncio.sleep(GRACE_SECONDS)


# --- calls ----------------------------------------------------------------------------------------


async def call_all(
    urls: Iterable[str],
    *,
    stream: bool = False,
    timeouts: Timeouts = TIMEOUTS,
    body: str = '{"model": "gpt-5.1"}',
) -> list[Exchange]:
    """Call one after the other, with one client. Whatever is raised or hangs fails the test."""
    urls = list(urls)
    upstream = Upstream(dict.fromkeys(urls, SecretStr(KEY)), timeouts)
    try:
        found = []
        for url in urls:
            async with asyncio.timeout(timeouts.call + GRACE_SECONDS):
                found.append(
                    await upstream.call(url, body, stream=stream, idempotency_key="k" * 16)
                )
        return found
    finally:
        await upstream.aclose()


def call(act: Act, *, stream: bool = False, timeouts: Timeouts = TIMEOUTS) -> Outcome:
    with Hostile(act) as server:
        (found,) = asyncio.run(call_all([server.url], stream=stream, timeouts=timeouts))
        return found.outcome


@dataclass(frozen=True)
class Row:
    """What an endpoint does, and what its call must come to."""

    name: str
    act: Act
    expected: dict[str, Any] = field(default_factory=dict)
    stream: bool = False

    def __str__(self) -> str:
        return self.name


def broken(
    name: str,
    act: Act,
    *codes: str,
    stream: bool = False,
    phase: Phase = Phase.ANSWERING,
    **expected: Any,
) -> Row:
    """A call that was cut somehow: on to the next endpoint, and it may be billed."""
    usual = {"error_class": DIVERT, "maybe_billed": True, "phase": phase, "code": codes}
    return Row(name, act, usual | expected, stream)


HTML: Final = b"<!doctype html><html><head><title>Just a moment</title></head></html>"

FAILURES: Final = [
    # nothing but silence, or an end
    broken("hangs before it reads", hangs_at_once, "total_timeout", phase=Phase.SENT),
    broken("hangs", sends_and_hangs(), "total_timeout", "read_timeout", phase=Phase.SENT),
    broken("hangs on a stream", sends_and_hangs(), "read_timeout", stream=True, phase=Phase.SENT),
    broken("closes", sends(), "server_disconnected", phase=Phase.SENT),
    broken("resets", sends_and_resets(), "connection_reset", phase=Phase.SENT),
    # cut
    broken("cut in the headers", sends(b"HTTP/1.1 200 OK\r\nx: "), phase=Phase.SENT),
    broken("cut after the headers", sends(head(JSON, length(ANSWER))), "payload_cut", status=200),
    broken("cut in the body", sends(head(JSON, length(ANSWER)), ANSWER[:30]), "payload_cut"),
    broken("reset in the body", sends_and_resets(head(JSON, length(ANSWER)), ANSWER[:30])),
    broken("cut in a chunk", sends(head(JSON, CHUNKED), chunk(ANSWER)[:30]), "payload_cut"),
    broken("cut without a length", sends(head(JSON, CLOSE), ANSWER[:30]), "answer_not_json"),
    broken("half closed in the body", sends_and_half_closes(head(JSON), ANSWER[:30])),
    broken(
        "hangs in the body",
        sends_and_hangs(head(JSON, length(ANSWER)), ANSWER[:30]),
        "total_timeout",
        "read_timeout",
        status=200,
    ),
    # cut streams keep what came
    broken(
        "stream ends early",
        sends(head(EVENTS, CHUNKED), chunk(HALF_STREAM), b"0\r\n\r\n"),
        "stream_cut",
        stream=True,
        partial="Half of an ",
    ),
    broken(
        "stream is cut",
        sends(head(EVENTS, CHUNKED), chunk(HALF_STREAM)),
        "payload_cut",
        stream=True,
        partial="Half of an ",
    ),
    broken(
        "stream is reset",
        sends_and_resets(head(EVENTS, CHUNKED), chunk(HALF_STREAM)),
        stream=True,
        partial="Half of an ",
    ),
    broken(
        "stream falls silent",
        sends_and_hangs(head(EVENTS, CHUNKED), chunk(HALF_STREAM)),
        "read_timeout",
        stream=True,
        partial="Half of an ",
    ),
    # slow
    broken("drips", drips(head(JSON, length(ANSWER)), ANSWER), "total_timeout", status=200),
    broken("drips its headers", drips(b"", head(JSON)), "total_timeout", phase=Phase.SENT),
    broken("drips a stream", drips(head(EVENTS), STREAM), "total_timeout", stream=True),
    broken(
        "drips life signs",
        repeats(head(EVENTS) + HALF_STREAM, b": PING\n\n", 0.05),
        "total_timeout",
        stream=True,
        partial="Half of an ",
    ),
    broken(
        "never comes to the answer",
        repeats(b"", head(status=b"103 Early Hints"), 0.02),
        "total_timeout",
        phase=Phase.SENT,
    ),
    # not what was asked for
    broken("page", sends(whole(b"content-type: text/html", body=HTML)), "answer_not_json"),
    broken(
        "page for a stream",
        sends(whole(b"content-type: text/html", body=HTML)),
        "answer_not_json",
        stream=True,
    ),
    broken("page that says JSON", sends(whole(JSON, body=HTML)), "answer_not_json", stream=True),
    broken("page that says stream", sends(whole(EVENTS, body=HTML)), stream=True),
    broken("nothing", sends(head(status=b"204 No Content")), "answer_empty", status=204),
    broken("stream of nothing", sends(head(EVENTS, CLOSE)), "stream_cut", stream=True),
    broken("bytes", sends(whole(JSON, body=bytes(range(256)) * 20)), "answer_not_json"),
    broken("deep", sends(whole(JSON, body=b'{"choices":' + b"[" * 100_000)), "answer_not_json"),
    # no HTTP
    broken("HTTP/0.9", sends(ANSWER), phase=Phase.SENT),
    broken("binary", sends(bytes(range(256)) * 9), phase=Phase.SENT),
    broken("status line of bytes", sends(whole(JSON, status=b"200 \xff\xfe")), phase=Phase.SENT),
    broken("two lengths", sends(head(length(5), length(ANSWER)) + ANSWER), phase=Phase.SENT),
    broken("length below 0", sends(head(JSON, length(-5)) + ANSWER), phase=Phase.SENT),
    broken("long header", sends(whole(b"x: " + b"y" * 100_000)), phase=Phase.SENT),
    broken("many headers", sends(whole(*[b"x: y"] * 5_000)), phase=Phase.SENT),
    broken("headers without end", repeats(head()[:-2], b"x: y\r\n" * 99), phase=Phase.SENT),
    broken("header without end", repeats(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 999), phase=Phase.SENT),
    broken("chunk of no size", sends(head(JSON, CHUNKED) + b"zz\r\n"), phase=Phase.SENT),
    # encoded
    broken(
        "gzip that is none",
        sends(whole(JSON, b"content-encoding: gzip")),
        "answer_undecodable",
    ),
    # refusals count though they never come whole
    *(
        Row(name, act, {"error_class": PAUSE, "code": ("invalid_api_key",), "status": 401})
        for name, act in {
            "401 and hangs": sends_and_hangs(head(JSON, length(99), status=b"401 No"), b"{"),
            "401 and cuts": sends(head(JSON, length(99), status=b"401 No"), b"{"),
            "401 and drips": drips(head(JSON, length(99), status=b"401 No"), b" " * 99),
            "401 and floods": repeats(head(JSON, status=b"401 No"), b"x" * 65_536),
            "401 and a lie": sends_and_hangs(head(length(100_000_000), status=b"401 No")),
        }.items()
    ),
    Row(
        "429 and cuts",
        sends(head(length(99), b"retry-after: 3", status=b"429 Slow"), b"{"),
        {"error_class": RETRY, "retry_after_seconds": 3.0, "maybe_billed": False},
    ),
    Row(
        "413 before it reads",
        answers_unasked,
        {"error_class": PERMANENT, "code": ("request_too_large",), "maybe_billed": False},
    ),
    Row(
        "503 and a date beyond the calendar",
        sends(whole(b"retry-after: Sun, 01 Mar 99999999999 18:00:30 GMT", status=b"503 No")),
        {"error_class": RETRY, "retry_after_seconds": 30.0},
    ),
    Row(
        "503 and a zone beyond the earth",
        sends(whole(b"retry-after: Sun, 01 Mar 2026 18:00:30 +99999999999999", status=b"503 No")),
        {"error_class": RETRY, "retry_after_seconds": 30.0},
    ),
]

ANSWERS: Final = [
    Row("HTTP/1.0", sends(head(JSON, version=b"HTTP/1.0") + ANSWER)),
    Row("connection: close", sends(whole(JSON, CLOSE))),
    Row("half closed", sends_and_half_closes(head(JSON) + ANSWER)),
    Row("100 before", sends(head(status=b"100 Continue"), whole(JSON))),
    Row("103 before", sends(head(b"link: </x>", status=b"103 Early Hints"), whole(JSON))),
    Row("bytes in headers", sends(whole(b"content-type: \xff", b"x-request-id: \xfe"))),
    Row("gzip", sends(whole(JSON, b"content-encoding: gzip", body=gzip.compress(ANSWER)))),
    Row("one byte to a chunk", sends(head(JSON, CHUNKED), *(chunk(ANSWER[n : n + 1])
        for n in range(len(ANSWER))), b"0\r\n\r\n")),
    Row("whole, then cut", sends(head(JSON, CHUNKED), chunk(ANSWER))),
    Row("whole, then silent", sends_and_hangs(head(JSON, length(9_999)), ANSWER)),
    Row("plain for a stream", sends(whole(JSON)), stream=True),
    Row("stream", sends(head(EVENTS, CLOSE) + STREAM), stream=True),
    Row("stream whole, then cut", sends(head(EVENTS, CHUNKED), chunk(STREAM[:-14])), stream=True),
    Row("stream whole, then silent", sends_and_hangs(head(EVENTS), STREAM), stream=True),
    Row("stream that says nothing", sends(head(CLOSE) + STREAM), stream=True),
    Row("stream that says text", sends(head(b"content-type: text/plain") + STREAM), stream=True),
    Row("stream in capitals", sends(head(EVENTS.upper()) + STREAM), stream=True),
    Row("stream that nobody asked for", sends(head(EVENTS) + STREAM)),
    Row("stream in gzip", sends(head(EVENTS, b"content-encoding: gzip") + gzip.compress(STREAM)),
        stream=True),
]  # fmt: skip


Ended = dict[str, Exchange | BaseException]


@pytest.fixture(scope="module")
def ended() -> Ended:
    """What became of all rows, run side by side: most of them do nothing but wait."""
    rows = [*FAILURES, *ANSWERS]

    async def run(urls: list[str]) -> list[Exchange | BaseException]:
        upstream = Upstream(dict.fromkeys(urls, SecretStr(KEY)), TIMEOUTS)
        try:
            calls = [
                upstream.call(url, "{}", stream=row.stream, idempotency_key="k" * 16)
                for url, row in zip(urls, rows, strict=True)
            ]
            async with asyncio.timeout(TIMEOUTS.call + 2 * GRACE_SECONDS):
                return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await upstream.aclose()

    with ExitStack() as stack:
        servers = [stack.enter_context(Hostile(row.act)) for row in rows]
        found = asyncio.run(run([server.url for server in servers]))
    return dict(zip(map(str, rows), found, strict=True))


def of(ended: Ended, row: Row) -> Exchange:
    found = ended[row.name]
    if isinstance(found, BaseException):
        raise found
    return found


@pytest.mark.parametrize("row", FAILURES, ids=str)
def test_each_way_to_go_wrong_is_a_failure_of_its_class(ended: Ended, row: Row) -> None:
    _check(of(ended, row), row)


def _check(exchange: Exchange, row: Row) -> None:
    found = exchange.outcome
    assert isinstance(found, Failure), found
    expected = dict(row.expected)
    codes = expected.pop("code", ())
    assert not codes or found.code in codes
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.message
    assert KEY not in repr(found)


@pytest.mark.parametrize("row", ANSWERS, ids=str)
def test_an_answer_that_comes_oddly_is_an_answer(ended: Ended, row: Row) -> None:
    found = of(ended, row).outcome
    assert isinstance(found, Answer), found
    assert (found.content, found.finish_reason) == ("A whole answer.", "stop")


@pytest.mark.parametrize("row", [*FAILURES, *ANSWERS], ids=str)
def test_no_call_lasts_longer_than_its_time(ended: Ended, row: Row) -> None:
    assert of(ended, row).seconds < TIMEOUTS.call + 1.0


def test_no_two_rows_have_the_same_name() -> None:
    assert len({row.name for row in (*FAILURES, *ANSWERS)}) == len(FAILURES) + len(ANSWERS)


# --- before anything is sent ----------------------------------------------------------------------


@pytest.fixture
def nobody() -> Iterator[str]:
    """A port that is bound, so that nobody else takes it, and refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_what_never_left_this_machine_is_never_billed(nobody: str) -> None:
    async def no_tls(peer: Peer) -> None:
        await peer.send(b"220 This is another service.\r\n")

    with Hostile(no_tls) as speaker, Hostile(hangs_at_once) as mute:
        urls = {
            f"http://{nobody}": "connection_refused",
            speaker.url.replace("http:", "https:"): "tls_failed",
            mute.url.replace("http:", "https:"): "connect_timeout",
            "http://no-such-host.invalid": "dns_failed",
        }
        timeouts = Timeouts(connect=1.0, idle=30.0, call=30.0)
        found = [one.outcome for one in asyncio.run(call_all(urls, timeouts=timeouts))]
    for outcome, code in zip(found, urls.values(), strict=True):
        assert isinstance(outcome, Failure)
        assert (outcome.code, outcome.error_class) == (code, DIVERT)
        assert (outcome.phase, outcome.maybe_billed) == (Phase.CONNECTING, False)


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int, stream: bool) -> None:
    with Hostile(sends(whole(JSON))) as target:
        place = f"location: {target.url}/v1/chat/completions".encode()
        moved = whole(place, b"refresh: 0; url=" + target.url.encode(), status=b"%d Go" % status)
        with Hostile(sends(moved)) as server:
            (one,) = asyncio.run(call_all([server.url], stream=stream))
            assert len(server.heads) == 1
        assert target.connections == 0
    found = one.outcome
    assert isinstance(found, Failure)
    assert (found.code, found.error_class) == ("redirect_refused", DIVERT)
    assert (found.status, found.maybe_billed) == (status, False)


def test_cookies_are_not_taken_from_one_call_to_the_next() -> None:
    with Hostile(sends(whole(JSON, CLOSE, b"set-cookie: a=b"))) as server:
        asyncio.run(call_all([server.url] * 2))
        assert len(server.heads) == 2
        assert not any(b"cookie" in one.lower() for one in server.heads)


# --- connections that are used again --------------------------------------------------------------


@pytest.mark.parametrize(
    "unasked",
    [
        whole(JSON, body=answer("Another's answer.")),
        whole(JSON, CLOSE, body=b"", status=b"408 Request Timeout"),
        b"garbage",
    ],
    ids=["an answer", "a farewell", "garbage"],
)
def test_what_came_unasked_is_no_answer_to_the_next_call(unasked: bytes) -> None:
    async def act(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(whole(JSON))
            await asyncio.sleep(0.1)
            await peer.send(unasked)

    async def two_calls(url: str) -> list[Outcome]:
        upstream = Upstream({url: SecretStr(KEY)}, TIMEOUTS)
        try:
            first = await upstream.call(url, "{}", stream=False, idempotency_key="k" * 16)
            await asyncio.sleep(0.3)
            second = await upstream.call(url, "{}", stream=False, idempotency_key="l" * 16)
            return [first.outcome, second.outcome]
        finally:
            await upstream.aclose()

    with Hostile(act) as server:
        found = asyncio.run(two_calls(server.url))
        assert server.connections == 2
    assert [one.content for one in found if isinstance(one, Answer)] == ["A whole answer."] * 2


def test_a_connection_is_used_again_where_nothing_is_wrong_with_it() -> None:
    async def act(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(whole(JSON))

    with Hostile(act) as server:
        found = asyncio.run(call_all([server.url] * 5))
        assert (server.connections, len(server.heads)) == (1, 5)
    assert all(isinstance(one.outcome, Answer) for one in found)


# --- time -----------------------------------------------------------------------------------------


def test_a_stream_lives_as_long_as_it_is_never_silent_for_long() -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(EVENTS, CLOSE))
        for _ in range(8):
            await peer.send(event("word "))
            await asyncio.sleep(0.15)
        await peer.send(event(finish="stop"))

    began = time.monotonic()
    found = call(act, stream=True, timeouts=Timeouts(connect=1.0, idle=0.9, call=20.0))
    assert time.monotonic() - began > 1.0
    assert isinstance(found, Answer)
    assert found.content == "word " * 8


def test_a_plain_call_may_be_silent_for_longer_than_a_stream() -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.6)
        await peer.send(whole(JSON))

    found = call(act, timeouts=Timeouts(connect=1.0, idle=0.2, call=20.0))
    assert isinstance(found, Answer)


# --- size -----------------------------------------------------------------------------------------

FLOOD: Final = b"x" * (1 << 16)
LINE: Final = b"data: " + b"x" * 200 + b"\n"


def bombs(coding: str) -> Act:
    """Send 200 MB of nothing, in gzip or in gzip in gzip."""

    async def act(peer: Peer) -> None:
        bomb = gzip.compress(bytes(200_000_000), 1)
        if coding != "gzip":
            bomb = gzip.compress(bomb)
        kind = JSON if coding != "gzip" else EVENTS
        await sends(whole(kind, f"content-encoding: {coding}".encode(), body=bomb))(peer)

    return act


FLOODS: Final = [
    broken("body", repeats(head(JSON), FLOOD), "answer_too_large"),
    broken("chunks", repeats(head(JSON, CHUNKED), chunk(FLOOD)), "answer_too_large"),
    broken("length", sends_and_hangs(head(JSON, length(10**8))), "answer_too_large"),
    broken("gzip in gzip", bombs("gzip, gzip"), "answer_not_json"),
    broken("line", repeats(head(EVENTS), FLOOD), "answer_too_large", stream=True),
    broken(
        "comments", repeats(head(EVENTS), b":" + FLOOD + b"\n"), "answer_too_large", stream=True
    ),
    broken("stream's length", sends_and_hangs(head(EVENTS, length(10**8))), stream=True),
    broken("gzip", bombs("gzip"), "answer_too_large", stream=True),
    broken("short lines", repeats(head(EVENTS), b"xy\n" * 9_000), "stream_unreadable", stream=True),
    broken("no data", repeats(head(EVENTS), b"data:\n" * 9_000), "stream_unreadable", stream=True),
    broken("endless event", repeats(head(EVENTS), LINE * 300), "stream_unreadable", stream=True),
]


@pytest.mark.parametrize("row", FLOODS, ids=str)
def test_an_answer_without_end_takes_neither_memory_nor_time(row: Row) -> None:
    timeouts = Timeouts(connect=5.0, idle=5.0, call=30.0)
    with Hostile(row.act) as server:
        tracemalloc.start()
        (one,) = asyncio.run(call_all([server.url], stream=row.stream, timeouts=timeouts))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert server.sent < 2 * MAX_ANSWER_BYTES
    _check(one, row)
    assert peak < (300 << 20 if "gzip" in row.name else 2.5 * MAX_ANSWER_BYTES)


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": n} for n in range(100_000)],
        [{"delta": {"tool_calls": [{"index": n, "id": f"c{n}"} for n in range(100_000)]}}],
    ],
    ids=["choices", "tool calls"],
)
def test_more_parts_than_any_answer_has_do_not_hold_up_the_other_calls(choices: list[Any]) -> None:
    flood = b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"
    timeouts = Timeouts(connect=5.0, idle=5.0, call=30.0)
    with Hostile(sends(head(EVENTS) + flood)) as server:
        (one,) = asyncio.run(call_all([server.url], stream=True, timeouts=timeouts))
    assert isinstance(one.outcome, Failure)
    assert one.outcome.code == "stream_unreadable"
    assert one.seconds < 5


# --- bytes at random ------------------------------------------------------------------------------


def test_no_bytes_at_all_make_a_call_raise() -> None:
    """Proper replies with a few bytes changed, lost or doubled; the same ones in every run."""
    rng = random.Random(4)  # noqa: S311  # no secret
    proper = [
        whole(JSON, CLOSE, b"x-request-id: r-1", b"retry-after: 3"),
        whole(JSON, CLOSE, b"retry-after: Sun, 01 Mar 2026 18:00:30 GMT", status=b"429 Slow"),
        head(EVENTS, CHUNKED) + chunk(STREAM) + b"0\r\n\r\n",
        whole(EVENTS, b"content-encoding: gzip", body=gzip.compress(STREAM, mtime=0)),
        whole(b"location: http://127.0.0.1:1/", CLOSE, status=b"302 Found"),
    ]
    spoilt = [_spoilt(rng.choice(proper), rng) for _ in range(300)]
    replies = iter(spoilt)

    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(next(replies))

    with Hostile(act) as server:
        urls = [server.url] * len(spoilt)
        found = asyncio.run(call_all(urls, stream=True, timeouts=Timeouts(1.0, 1.0, 1.0)))
    assert {type(one.outcome) for one in found} == {Answer, Failure}


def _spoilt(reply: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(reply))
        end = start + rng.choice([0, 1, 1, 8])
        middle = rng.choice([b"", rng.randbytes(rng.randint(1, 3)), reply[start:end] * 2])
        reply = reply[:start] + middle + reply[end:]
    return reply


# --- a worker that meets them ---------------------------------------------------------------------

WORST: Final = (
    sends_and_hangs(),
    drips(head(JSON, length(ANSWER)), ANSWER),
    repeats(head(JSON), FLOOD),
    sends(whole(b"content-type: text/html", body=HTML)),
    sends(head(JSON, length(ANSWER)), ANSWER[:30]),
    sends(whole(JSON, status=b"200 \xff\xfe")),
)


def test_every_job_succeeds_though_all_endpoints_but_the_last_are_hostile(
    make_site: MakeSite,
) -> None:
    site = make_site()
    good = site.simulator.url
    with ExitStack() as stack:
        target = stack.enter_context(Hostile(sends(whole(JSON))))
        place = f"location: {target.url}/v1/chat/completions".encode()
        moves = stack.enter_context(Hostile(sends(whole(place, body=b"", status=b"307 Go"))))
        others = [stack.enter_context(Hostile(act)) for act in WORST]
        servers = [*others, moves]
        site.start_worker(
            text_endpoints=(*(server.url for server in servers), good),
            max_attempts=30,
            call_timeout_seconds=1.0,
            idle_timeout_seconds=1.0,
        )
        jobs = site.run([plain(f"hostile {n}", stream=n % 2 == 1) for n in range(6)])
        site.close()
        assert all(server.heads for server in servers)
        assert target.connections == 0
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    assert site.simulator.summary().calls == len(jobs)
    for job in jobs:
        *failed, last = site.client.attempts(job.id)
        assert (last.endpoint, last.error_code) == (good, None)
        assert all(one.error_code for one in failed)
        billed = {one.endpoint: one.maybe_billed for one in failed}
        assert not billed.pop(moves.url, False)
        assert all(billed.values())
