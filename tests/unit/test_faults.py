import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.outcomes import (
    NO_CHANNEL,
    RATE_LIMITED,
    ErrorClass,
    Failure,
    Phase,
    RateLimits,
)
from worker.upstream.faults import (
    RATE_LIMIT_WAIT_SECONDS,
    TRANSPORT,
    UNAVAILABLE_WAIT_SECONDS,
    TransportFault,
    read_failure,
    transport_failure,
)
from worker.upstream.texts import MAX_BODY, MAX_MESSAGE
from worker.upstream.waits import (
    MAX_WAIT_SECONDS,
    asked_wait,
    duration_seconds,
    read_rate_limits,
)

RETRY, DIVERT = ErrorClass.RETRY, ErrorClass.DIVERT
PERMANENT, PAUSE = ErrorClass.PERMANENT, ErrorClass.PAUSE
NOW = datetime(2026, 3, 1, 18, 0, tzinfo=UTC)
PAGE = b"<!DOCTYPE html><html><head><title>502 Bad\n Gateway</title></head></html>"


def error(code: Any = None, type_: str = "", message: str = "no") -> bytes:
    return json.dumps({"error": {"code": code, "type": type_, "message": message}}).encode()


def read(status: int, body: bytes = b"", /, **headers: str) -> Failure:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return read_failure(status, named, body, now=NOW)


@pytest.mark.parametrize(
    ("status", "body", "error_class", "billed"),
    [
        # 400 invalid request, unsupported value, context length, content policy; 404; 413; 422
        (400, error(type_="invalid_request_error"), PERMANENT, False),
        (400, error("unsupported_value"), PERMANENT, False),
        (400, error("unsupported_parameter"), PERMANENT, False),
        (400, error("context_length_exceeded"), PERMANENT, False),
        (400, error("content_policy_violation"), PERMANENT, False),
        (404, error("model_not_found"), PERMANENT, False),
        (404, b"", PERMANENT, False),
        (413, b"", PERMANENT, False),
        (422, b"", PERMANENT, False),
        # 400/503 no available channel, model unavailable
        (400, error(message="No available channel for model gpt-5.1"), RETRY, False),
        (503, error("model_not_found", message="分组下模型 gpt-5.1 无可用渠道"), RETRY, False),
        (503, error("no_available_channel"), RETRY, False),
        (503, error("model_unavailable"), RETRY, False),
        (503, error("model_not_found"), RETRY, False),
        (400, error(message="The model gpt-5.1 is currently unavailable"), RETRY, False),
        # 401 invalid, disabled or expired key
        (401, b"", PAUSE, False),
        (401, error("invalid_api_key"), PAUSE, False),
        (401, error(type_="invalid_request_error"), PAUSE, False),
        (401, error("token_expired"), PAUSE, False),
        (403, error("api_key_disabled"), PAUSE, False),
        # 402 and quota codes; 429 with a quota code
        (402, b"", PAUSE, False),
        (500, error(402), PAUSE, False),
        (400, error("insufficient_quota"), PAUSE, False),
        (429, error("insufficient_quota"), PAUSE, False),
        (429, error(type_="insufficient_quota"), PAUSE, False),
        (429, error("daily_quota_exceeded"), PAUSE, False),
        (403, error("token_quota_exceeded"), PAUSE, False),
        (400, error("account_balance_insufficient"), PAUSE, False),
        (403, error("insufficient_user_quota"), PAUSE, False),
        # 403 model not allowed for this key; quota-style 403
        (403, error("model_not_allowed"), PERMANENT, False),
        (403, error(message="This key has no access to this model"), PERMANENT, False),
        (403, error(message="Your quota is used up"), PAUSE, False),
        # 408
        (408, b"", RETRY, False),
        # 429 rate limit
        (429, b"", RETRY, False),
        (429, error("rate_limit_exceeded", "tokens"), RETRY, False),
        (500, error(429), RETRY, False),
        # 500, 502, 503
        (500, b"", RETRY, False),
        (502, PAGE, RETRY, False),
        (503, b"", RETRY, False),
        # 504, 520-530
        (504, b"", DIVERT, True),
        *((status, PAGE, DIVERT, True) for status in range(520, 531)),
        # what the table leaves open
        (403, PAGE, DIVERT, False),
        (409, b"", RETRY, False),
        (418, b"", PERMANENT, False),
        (501, b"", RETRY, False),
        (200, error("something_new"), RETRY, True),
        (504, error("rate_limit_exceeded"), RETRY, True),
    ],
)
def test_an_error_reply_falls_into_its_class(
    status: int, body: bytes, error_class: ErrorClass, billed: bool
) -> None:
    found = read(status, body)
    assert (found.error_class, found.maybe_billed, found.status) == (error_class, billed, status)
    assert found.phase is Phase.ANSWERING


@pytest.mark.parametrize(
    ("body", "error_class", "message"),
    [
        (b'{"error":{"code":402,"message":"pay","type":"x"}}', PAUSE, "pay"),
        (b'{"error":{"code":"insufficient_quota","message":"none"}}', PAUSE, "none"),
        (b'{"message":"slow","type":"","code":429}', RETRY, "slow"),
        (b'{"error":"text"}', PERMANENT, "text"),
        (b'{"success":false,"code":402,"msg":"pay"}', PAUSE, "pay"),
        (b'{"detail":[{"loc":["n"],"msg":"bad"}]}', PERMANENT, '[{"loc":["n"],"msg":"bad"}]'),
        (b'{"errors":[{"message":"first"}]}', PERMANENT, "first"),
        (PAGE, PERMANENT, 'HTTP 400: a page of HTML came in place of an answer: "502 Bad Gateway"'),
        (b"<html>", PERMANENT, "HTTP 400: a page of HTML came in place of an answer"),
        (b" ", PERMANENT, "HTTP 400 with an empty body"),
        (b"plain words", PERMANENT, "HTTP 400: plain words"),
        (b'"\xff"', PERMANENT, "\ufffd"),
        (b"[]", PERMANENT, "[]"),
        (b"{}", PERMANENT, "HTTP 400: {}"),
        (b"[" * 99_999, PERMANENT, "HTTP 400: [[["),
    ],
)
def test_every_form_of_error_body_is_read(
    body: bytes, error_class: ErrorClass, message: str
) -> None:
    found = read(400, body)
    assert found.error_class is error_class
    assert found.message.startswith(message)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (429, error("rate_limit_exceeded"), "rate_limit_exceeded"),
        (429, b"", "rate_limit_exceeded"),
        (400, error("Context_Length_Exceeded"), "context_length_exceeded"),
        (503, error("get_channel_failed"), NO_CHANNEL),
        (503, error(message="no available channel"), NO_CHANNEL),
        (522, b"", "edge_error_522"),
        (418, b"", "http_418"),
    ],
)
def test_a_failure_has_a_short_stable_name(status: int, body: bytes, code: str) -> None:
    assert read(status, body).code == code


def test_the_code_goes_before_the_type_and_the_type_before_the_status() -> None:
    both = error("context_length_exceeded", "rate_limit_error")
    assert read(500, both).error_class is PERMANENT
    assert read(400, error(None, "rate_limit_error")).error_class is RETRY


@pytest.mark.parametrize(
    ("status", "word", "error_class"),
    [
        (400, "true", RETRY),
        (504, "TRUE", RETRY),
        (500, "false", PERMANENT),
        (504, "false", PERMANENT),
        (500, "perhaps", RETRY),
        (401, "true", PAUSE),
        (402, "false", PAUSE),
    ],
)
def test_the_servers_own_word_on_retrying_overrules_the_status(
    status: int, word: str, error_class: ErrorClass
) -> None:
    assert read(status, x_should_retry=word).error_class is error_class


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "Sun, 01 Mar 2026 18:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 01 Mar 2026 18:00:30 -0000"}, 30.0),
        ({"retry-after": "Sun, 01 Mar 2026 17:00:00 GMT"}, 0.0),
        ({"retry-after": "9" * 400}, MAX_WAIT_SECONDS),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 01 Mar 99999999999 18:00:30 GMT"}, None),
        ({"retry-after": "Sun, 01 Mar 2026 18:00:30 +99999999999999"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "1s"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_headers_ask_for_is_read(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert asked_wait(headers, NOW) == seconds


@given(
    st.text(max_size=40) | st.from_regex(r"\w{3}, \d+ Mar \d+ \d+:\d+:\d+ [+-]\d+", fullmatch=True)
)
def test_no_wait_at_all_can_make_the_reader_raise(text: str) -> None:
    wait = asked_wait({"retry-after": text, "retry-after-ms": text[1:]}, NOW)
    assert wait is None or 0 <= wait <= MAX_WAIT_SECONDS


def test_a_wait_until_a_date_needs_to_be_told_the_time() -> None:
    assert asked_wait({"retry-after": "Sun, 01 Mar 2026 18:00:30 GMT"}, None) is None


def test_documented_waits_hold_only_where_no_header_speaks() -> None:
    assert read(429).retry_after_seconds == RATE_LIMIT_WAIT_SECONDS == 60
    assert read(503).retry_after_seconds == UNAVAILABLE_WAIT_SECONDS == 30
    assert read(429, retry_after="2").retry_after_seconds == 2
    assert read(503, retry_after_ms="20").retry_after_seconds == 0.02
    assert read(200, error(429)).retry_after_seconds == RATE_LIMIT_WAIT_SECONDS
    assert read(500).retry_after_seconds is None


def test_a_wait_of_the_documentation_is_not_one_that_the_server_asked_for() -> None:
    assert read(503, retry_after="30").wait_asked
    assert not read(503).wait_asked
    assert not read(429).wait_asked


@pytest.mark.parametrize(
    ("failure", "limited"),
    [
        (read(429), True),
        (read(200, error(429)), True),
        (read(400, error("too_many_requests")), True),
        (read(429, error("overloaded_error")), True),
        (read(429, error("insufficient_quota")), False),
        (read(429, x_should_retry="false"), False),
        (read(503), False),
    ],
)
def test_a_rate_limit_is_told_from_a_quota_and_from_an_overload(
    failure: Failure, limited: bool
) -> None:
    assert failure.is_rate_limit == limited
    assert failure.code == RATE_LIMITED or not limited or failure.code == "overloaded_error"


def test_a_daily_quota_waits_for_its_reset() -> None:
    daily = error("daily_quota_exceeded")
    assert read(429, daily).retry_after_seconds == 6 * 3600
    assert read(429, daily, retry_after="90").retry_after_seconds == 90
    assert read(429, error("insufficient_quota")).retry_after_seconds is None
    assert read_failure(429, {}, daily).retry_after_seconds is None


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://evil.example/v1?k=1", "a redirect to evil.example was refused"),
        ("/v2/chat", "the same host"),
        ("", "the same host"),
        ("https://[::1/", "unreadable"),
    ],
)
def test_a_redirect_is_refused_and_names_its_host(location: str, words: str) -> None:
    found = read(307, b"", location=location)
    assert (found.error_class, found.code) == (DIVERT, "redirect_refused")
    assert words in found.message


def test_the_request_id_is_found_in_headers_or_in_the_message() -> None:
    told = error(message="Oh no (request id: 2026-abc.1)")
    assert read(500, told).request_id == "2026-abc.1"
    assert read(500, told, x_oneapi_request_id="one").request_id == "one"
    assert read(500, told, x_request_id="x", x_oneapi_request_id="one").request_id == "x"
    assert read(500).request_id is None


def test_keys_never_get_into_a_failure() -> None:
    told = error("invalid_api_key", message="Wrong key sk-proj-AbC_123*** in Bearer abc.def-1")
    found = read(401, told)
    assert found.message == "Wrong key sk-… in Bearer …"
    assert "AbC" not in str(found)
    assert "abc" not in str(found)
    assert "s3cret" not in transport_failure(TransportFault.RESET, "Bearer s3cret").message


def test_words_that_merely_resemble_a_key_stay() -> None:
    assert read(400, error(message="task-force, risk-averse")).message == "task-force, risk-averse"


def test_long_replies_are_cut_and_kept_storable() -> None:
    found = read(500, error(message="x\0" * 50_000))
    assert len(found.message) == MAX_MESSAGE
    assert found.body is not None
    assert len(found.body) == MAX_BODY
    assert "\0" not in found.message


@pytest.mark.parametrize(
    ("kind", "error_class", "phase", "billed"),
    [
        (TransportFault.DNS, DIVERT, Phase.CONNECTING, False),
        (TransportFault.CONNECTION_REFUSED, DIVERT, Phase.CONNECTING, False),
        (TransportFault.CONNECT_TIMEOUT, DIVERT, Phase.CONNECTING, False),
        (TransportFault.TLS, DIVERT, Phase.CONNECTING, False),
        (TransportFault.RESET, DIVERT, Phase.SENT, True),
        (TransportFault.DISCONNECTED, DIVERT, Phase.SENT, True),
        (TransportFault.READ_TIMEOUT, DIVERT, Phase.SENT, True),
        (TransportFault.TOTAL_TIMEOUT, DIVERT, Phase.SENT, True),
        (TransportFault.PAYLOAD_CUT, DIVERT, Phase.ANSWERING, True),
        (TransportFault.TOO_LARGE, DIVERT, Phase.ANSWERING, True),
        (TransportFault.DECODING, DIVERT, Phase.ANSWERING, True),
    ],
)
def test_a_call_that_broke_tells_how_far_it_came(
    kind: TransportFault, error_class: ErrorClass, phase: Phase, billed: bool
) -> None:
    found = transport_failure(kind, "")
    assert (found.error_class, found.phase, found.maybe_billed) == (error_class, phase, billed)
    assert found.code == kind.value
    assert found.message


def test_every_transport_fault_is_mapped() -> None:
    assert set(TRANSPORT) == set(TransportFault)


def test_the_caller_may_know_better_how_far_a_call_came() -> None:
    early = transport_failure(TransportFault.TOTAL_TIMEOUT, "t", phase=Phase.CONNECTING)
    assert not early.maybe_billed
    late = transport_failure(TransportFault.RESET, "t", phase=Phase.ANSWERING, status=200)
    assert (late.maybe_billed, late.status) == (True, 200)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1d", 86_400.0),
        ("20", 20.0),
        ("-1", None),
        ("1 fortnight", None),
        ("", None),
        (None, None),
    ],
)
def test_durations_are_read(text: str | None, seconds: float | None) -> None:
    assert duration_seconds(text) == (None if seconds is None else pytest.approx(seconds))


def test_limits_are_read_and_minus_one_means_unknown() -> None:
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-limit-tokens": "-1",
        "x-ratelimit-remaining-tokens": "?",
    }
    assert read_rate_limits(headers) == RateLimits(500, 499, 360.0)


def test_no_limits_are_no_limits() -> None:
    assert read_rate_limits({"x-ratelimit-limit-tokens": "-1"}) is None
    assert read_rate_limits({}) is None
