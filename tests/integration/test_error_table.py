"""The reference's table of errors, row by row, as calls over a real connection meet it.

The simulator carries out what a proper HTTP server can; a server of bytes does the rest. Each row
quotes the table's cell, so that the two can be laid side by side.
"""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

import pytest
from pydantic import SecretStr

from tests.integration.conftest import KEY, scripted
from tests.integration.hostile import Hostile, Peer
from worker.jobs.outcomes import Answer, ErrorClass, Failure, Outcome, Phase
from worker.simulator import FAULTS, Behaviour, SimulatorThread
from worker.upstream.client import Timeouts, Upstream

RETRY, DIVERT = ErrorClass.RETRY, ErrorClass.DIVERT
PERMANENT, PAUSE = ErrorClass.PERMANENT, ErrorClass.PAUSE
TIMEOUTS: Final = Timeouts(connect=5.0, idle=10.0, call=10.0)
SHORT: Final = Timeouts(connect=1.0, idle=0.3, call=0.4)


@dataclass(frozen=True)
class Row:
    """A fault of the simulator, and what a call that meets it comes to.

    `waits`: the seconds that the failure asks for. `timeouts`: where the fault is a slow one.
    """

    fault: str
    error_class: ErrorClass
    code: str
    billed: bool = False
    status: int | None = None
    waits: float | None = None
    phase: Phase = Phase.ANSWERING
    stream: bool = False
    timeouts: Timeouts = TIMEOUTS

    def __str__(self) -> str:
        return f"{self.fault}{' (stream)' if self.stream else ''}"


ROWS: Final = [
    # 400 invalid request, unsupported value, context length, content policy; 404; 413; 422
    Row("400", PERMANENT, "invalid_value", status=400),
    Row("400_unsupported_parameter", PERMANENT, "unsupported_parameter", status=400),
    Row("400_unsupported_value", PERMANENT, "unsupported_value", status=400),
    Row("400_context_length", PERMANENT, "context_length_exceeded", status=400),
    Row("400_content_policy", PERMANENT, "content_policy_violation", status=400),
    Row("404", PERMANENT, "model_not_found", status=404),
    Row("413", PERMANENT, "request_too_large", status=413),
    Row("422", PERMANENT, "unprocessable", status=422),
    # 400/503 no available channel, model unavailable: retry once, then divert
    Row("400_no_channel", RETRY, "no_available_channel", status=400),
    Row("no_channel", RETRY, "no_available_channel", status=503, waits=30.0),
    # 401 invalid, disabled or expired key
    Row("401", PAUSE, "invalid_api_key", status=401),
    # 402 and quota codes; 429 with a quota code
    Row("402", PAUSE, "insufficient_quota_error", status=402),
    Row("402_balance", PAUSE, "account_balance_insufficient", status=402),
    Row("429_quota", PAUSE, "insufficient_quota", status=429),
    # 403 model not allowed for this key; quota-style 403
    Row("403", PERMANENT, "model_not_allowed", status=403),
    Row("403_quota", PAUSE, "insufficient_user_quota", status=403),
    # 408
    Row("408", RETRY, "request_timeout", status=408),
    # 429 rate limit: after Retry-After, or 60 s
    Row("429", RETRY, "rate_limit_exceeded", status=429, waits=0.25),
    Row("429+retry_after=0", RETRY, "rate_limit_exceeded", status=429, waits=60.0),
    # 500, 502, 503 (or 30 s)
    Row("500", RETRY, "server_error", status=500),
    Row("500_empty", RETRY, "server_error", status=500),
    Row("502", RETRY, "bad_gateway", status=502),
    Row("503", RETRY, "service_unavailable", status=503, waits=0.25),
    Row("503+retry_after=0", RETRY, "service_unavailable", status=503, waits=30.0),
    # x-should-retry: false
    Row("500_no_retry", PERMANENT, "server_error", status=500),
    # 504, 520-530: divert, maybe billed
    Row("504", DIVERT, "gateway_timeout", billed=True, status=504),
    Row("520", DIVERT, "edge_error_520", billed=True, status=520),
    Row("524", DIVERT, "edge_error_524", billed=True, status=524),
    # reset or timeout after the request was sent
    Row("reset", DIVERT, "connection_reset", billed=True, phase=Phase.SENT),
    Row("close", DIVERT, "server_disconnected", billed=True, phase=Phase.SENT),
    Row("hang", DIVERT, "total_timeout", billed=True, phase=Phase.SENT, timeouts=SHORT),
    Row("slow_drip", DIVERT, "total_timeout", billed=True, status=200, timeouts=SHORT),
    Row("slow_drip", DIVERT, "total_timeout", billed=True, status=200, stream=True, timeouts=SHORT),
    # cut stream
    Row("cut_body", DIVERT, "payload_cut", billed=True, status=200),
    Row("cut_stream", DIVERT, "stream_cut", billed=True, status=200, stream=True),
    Row("cut_stream_abrupt", DIVERT, "payload_cut", billed=True, status=200, stream=True),
    Row("cut_stream_done", DIVERT, "stream_cut", billed=True, status=200, stream=True),
    # 2xx that is not JSON, or holds no answer
    Row("bad_json", DIVERT, "answer_not_json", billed=True, status=200),
    Row("bad_json", DIVERT, "stream_unreadable", billed=True, status=200, stream=True),
    Row("html_200", DIVERT, "answer_not_json", billed=True, status=200),
    Row("html_200", DIVERT, "answer_not_json", billed=True, status=200, stream=True),
    Row("empty_200", DIVERT, "answer_empty", billed=True, status=200),
    Row("huge", DIVERT, "answer_too_large", billed=True, status=200),
    Row("huge", DIVERT, "answer_too_large", billed=True, status=200, stream=True),
    # status 200 with an `error` key, also amid a stream
    Row("error_200", RETRY, "upstream_error", status=200),
    Row("error_200", RETRY, "upstream_error", status=200, stream=True),
    Row("stream_error_event", RETRY, "upstream_error", billed=True, status=200, stream=True),
    # never followed
    Row("redirect", DIVERT, "redirect_refused", status=307),
]
DAILY: Final = "429_daily_quota"
ANSWERS: Final = {"bad_utf8": "stop", "content_filter": "content_filter", "length": "length"}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread(Behaviour(retry_after_seconds=0.25, drip_seconds=0.05)) as running:
        yield running


class Caller:
    """Makes calls, one at a time, with one client for each server and set of timeouts."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._upstreams: dict[tuple[str, Timeouts], Upstream] = {}

    def call(
        self, url: str, body: str = "{}", *, stream: bool = False, timeouts: Timeouts = TIMEOUTS
    ) -> Outcome:
        """Call, and wait for what comes of it."""
        if (url, timeouts) not in self._upstreams:
            self._upstreams[url, timeouts] = Upstream({url: SecretStr(KEY)}, timeouts)
        calling = self._upstreams[url, timeouts].call(
            url, body, stream=stream, idempotency_key="k" * 16
        )
        return self._runner.run(calling).outcome

    def failure(self, status: int, body: Any, *headers: str) -> Failure:
        """Call a server that answers with these words."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        top = (f"HTTP/1.1 {status} X", f"content-length: {len(text)}", "connection: close")
        reply = "".join(f"{line}\r\n" for line in (*top, *headers, "")).encode() + text

        async def act(peer: Peer) -> None:
            await peer.request()
            await peer.send(reply)

        with Hostile(act) as server:
            found = self.call(server.url)
        assert isinstance(found, Failure), found
        assert found.status == status
        return found

    def close(self) -> None:
        """Close all connections."""
        for upstream in self._upstreams.values():
            self._runner.run(upstream.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    made = Caller()
    yield made
    made.close()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_of_the_table(caller: Caller, simulator: SimulatorThread, row: Row) -> None:
    body = scripted(row.fault, stream=row.stream)
    found = caller.call(simulator.url, body, stream=row.stream, timeouts=row.timeouts)
    assert isinstance(found, Failure), found
    assert (found.error_class, found.code) == (row.error_class, row.code)
    assert (found.status, found.phase) == (row.status, row.phase)
    assert (found.maybe_billed, found.retry_after_seconds) == (row.billed, row.waits)
    assert found.message
    if row.status is not None and row.error_class is not DIVERT:
        assert (found.request_id or "").startswith("req_")
    if row.fault.startswith("cut_stream") or row.fault == "stream_error_event":
        assert found.partial


def test_a_daily_quota_pauses_until_its_reset(caller: Caller, simulator: SimulatorThread) -> None:
    found = caller.call(simulator.url, scripted(DAILY))
    assert isinstance(found, Failure)
    assert (found.error_class, found.code) == (PAUSE, "daily_quota_exceeded")
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    # a midnight that passes between the call and here makes the one about a day less
    wait = found.retry_after_seconds or 0.0
    assert abs(wait - (midnight - now).total_seconds()) % 86_400 < 30


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ANSWERS)
def test_what_looks_odd_and_is_an_answer(
    caller: Caller, simulator: SimulatorThread, fault: str, stream: bool
) -> None:
    found = caller.call(simulator.url, scripted(fault, stream=stream), stream=stream)
    assert isinstance(found, Answer), found
    assert found.finish_reason == ANSWERS[fault]
    assert found.content


def test_no_fault_of_the_simulator_is_without_a_row() -> None:
    assert {row.fault.partition("+")[0] for row in ROWS} | {DAILY, *ANSWERS} == set(FAULTS)


# --- what the simulator does not say --------------------------------------------------------------

ERROR: Final[dict[str, Any]] = {"message": "no", "type": "", "code": None}
JSON: Final = "content-type: application/json"


@pytest.mark.parametrize(
    ("status", "body", "error_class", "code"),
    [
        # "Bodies seen"
        (402, {"error": {"code": 402, "message": "m", "type": "t"}}, PAUSE, "insufficient_quota"),
        (500, {"error": {"code": 402, "message": "m", "type": "t"}}, PAUSE, "insufficient_quota"),
        (500, {"error": {**ERROR, "code": 400.0}}, PERMANENT, "invalid_request"),
        (403, {"error": {**ERROR, "code": "insufficient_quota"}}, PAUSE, "insufficient_quota"),
        (400, {"message": "m", "type": "", "code": 429}, RETRY, "rate_limit_exceeded"),
        (400, {"error": "text"}, PERMANENT, "invalid_request"),
        (400, {"success": False, "code": 503, "msg": "m"}, RETRY, "service_unavailable"),
        (500, b"<html><head><title>Oh</title></head></html>", RETRY, "server_error"),
        (500, b"", RETRY, "server_error"),
        (200, {"error": {**ERROR, "code": "context_length_exceeded"}}, PERMANENT, None),
        (200, {"error": {**ERROR, "code": 401}}, PAUSE, "invalid_api_key"),
        (200, {"success": False, "code": 402, "msg": "m"}, PAUSE, "insufficient_quota"),
        # `code` first, then `type`, then the status
        (500, {"error": {"code": "invalid_value", "type": "rate_limit_error"}}, PERMANENT, None),
        (500, {"error": {"code": None, "type": "rate_limit_error"}}, RETRY, "rate_limit_exceeded"),
        (500, {"error": {"code": "never_heard_of", "type": "nor_of_this"}}, RETRY, "server_error"),
        # disabled and expired keys, quotas under any status
        (401, {"error": {**ERROR, "code": "token_expired"}}, PAUSE, "token_expired"),
        (403, {"error": {**ERROR, "code": "api_key_disabled"}}, PAUSE, "api_key_disabled"),
        (400, {"error": {**ERROR, "code": "monthly_quota_exceeded"}}, PAUSE, None),
        (403, {"error": {**ERROR, "message": "Your quota is used up"}}, PAUSE, None),
        # no available channel by its words, model unavailable
        (400, {"error": {**ERROR, "message": "No available channel"}}, RETRY, None),
        (503, {"error": {**ERROR, "code": "model_unavailable"}}, RETRY, "no_available_channel"),
    ],
)
def test_a_body_of_any_form_is_read(
    caller: Caller, status: int, body: Any, error_class: ErrorClass, code: str | None
) -> None:
    found = caller.failure(status, body, JSON)
    assert found.error_class is error_class
    assert code is None or found.code == code
    assert not found.maybe_billed


@pytest.mark.parametrize("status", [504, *range(520, 531)])
def test_what_a_proxy_says_of_a_server_behind_it_may_be_billed(caller: Caller, status: int) -> None:
    found = caller.failure(status, b"<html></html>", "content-type: text/html")
    assert (found.error_class, found.maybe_billed) == (DIVERT, True)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503])
def test_what_the_api_refuses_is_not_billed(caller: Caller, status: int) -> None:
    assert not caller.failure(status, {"error": ERROR}, JSON).maybe_billed


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["retry-after-ms: 1500"], 1.5),
        (["retry-after: 7"], 7.0),
        (["retry-after: 0.5"], 0.5),
        (["Retry-After: 9", "Retry-After-Ms: 250"], 0.25),
        (["retry-after: soon"], 60.0),
        (["retry-after: -1"], 60.0),
        (["x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 6m0s"], 360.0),
        (["x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-tokens: 12ms"], 0.012),
        (["x-ratelimit-remaining-tokens: -1", "x-ratelimit-reset-tokens: 9s"], 60.0),
        ([], 60.0),
    ],
)
def test_the_wait_that_a_refusal_asks_for_is_read(
    caller: Caller, headers: list[str], seconds: float
) -> None:
    found = caller.failure(429, {"error": ERROR}, JSON, *headers)
    assert found.error_class is RETRY
    assert found.retry_after_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("status", [429, 503, 200])
def test_a_wait_until_a_date_is_read_whatever_the_status(caller: Caller, status: int) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=90)
    body = {"error": {**ERROR, "code": 429}}
    found = caller.failure(
        status, body, JSON, f"retry-after: {format_datetime(moment, usegmt=True)}"
    )
    assert 80 < (found.retry_after_seconds or 0) <= 90


@pytest.mark.parametrize(
    ("status", "word", "error_class", "billed"),
    [
        (400, "true", RETRY, False),
        (404, "true", RETRY, False),
        (504, "true", RETRY, True),
        (429, "false", PERMANENT, False),
        (500, "false", PERMANENT, False),
        (504, "false", PERMANENT, True),
        (500, "perhaps", RETRY, False),
        (401, "false", PAUSE, False),
        (402, "true", PAUSE, False),
    ],
)
def test_x_should_retry_overrides_the_status_and_no_pause(
    caller: Caller, status: int, word: str, error_class: ErrorClass, billed: bool
) -> None:
    found = caller.failure(status, {"error": ERROR}, JSON, f"x-should-retry: {word}")
    assert (found.error_class, found.maybe_billed) == (error_class, billed)


@pytest.mark.parametrize("name", ["x-request-id", "x-oneapi-request-id"])
def test_the_request_id_is_kept(caller: Caller, name: str) -> None:
    assert caller.failure(500, {"error": ERROR}, JSON, f"{name}: r-1").request_id == "r-1"
    told = {"error": {**ERROR, "message": "no (request id: r-2)"}}
    assert caller.failure(500, told, JSON).request_id == "r-2"


def test_a_connection_that_is_refused_is_never_billed(caller: Caller) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        found = caller.call(url)
    assert isinstance(found, Failure)
    assert (found.error_class, found.code) == (DIVERT, "connection_refused")
    assert (found.phase, found.maybe_billed) == (Phase.CONNECTING, False)
