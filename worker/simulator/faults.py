"""The faults by name: every row of the upstream's error table that a server can bring about.

Status faults are complete here, as data: status, body and headers. The others are only named;
`worker.simulator.deliveries` knows how each is carried out. Failures before a connection stands
(DNS, refused, TLS) cannot be simulated by a server.

Read by `behaviour` (are the names known?), `fates` and `deliveries`. Pure data, never any I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

OK: Final = "ok"

REQUEST_ID: Final = b"REQUEST_ID"
"""Stands in a body for the id of the request."""


@dataclass(frozen=True, slots=True)
class StatusFault:
    """An answer with an error status. `waits`: it carries a retry-after."""

    status: int
    body: bytes
    content_type: str = "application/json"
    waits: bool = False
    headers: tuple[tuple[str, str], ...] = ()


def error_body(message: str, kind: str, code: str | int | None, param: str | None = None) -> bytes:
    """OpenAI's error object, as JSON text."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def _error(status: int, code: str | int, message: str, kind: str = "") -> StatusFault:
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return StatusFault(status, error_body(message, kind, code))


def _json(status: int, body: Any, *, waits: bool = False) -> StatusFault:
    return StatusFault(status, orjson.dumps(body), waits=waits)


def _html(status: int, title: str) -> StatusFault:
    return StatusFault(status, html_page(f"{status} {title}"), "text/html; charset=UTF-8")


def html_page(title: str) -> bytes:
    """Give a page such as a proxy puts in place of the API's answer."""
    return (
        "<!DOCTYPE html>\n<html><head><title>"
        f"{title}</title></head><body><center><h1>{title}</h1></center></body></html>\n"
    ).encode()


_QUOTA = "You exceeded your current quota (request id: REQUEST_ID)"
_CHANNEL = "No available channel for this model under group default (request id: REQUEST_ID)"

STATUS_FAULTS: Final[Mapping[str, StatusFault]] = {
    "400": _error(400, "invalid_value", "Invalid value in the request."),
    "400_unsupported_parameter": _error(
        400, "unsupported_parameter", "Unsupported parameter for this model: 'temperature'."
    ),
    "400_unsupported_value": _error(
        400, "unsupported_value", "Unsupported value: only the default temperature (1) is allowed."
    ),
    "400_context_length": _error(
        400, "context_length_exceeded", "This model's maximum context length is 400000 tokens."
    ),
    "400_content_policy": _error(
        400, "content_policy_violation", "The request was rejected by the safety system."
    ),
    "400_no_channel": _error(400, "no_available_channel", _CHANNEL, "new_api_error"),
    "401": _error(401, "invalid_api_key", "Incorrect API key provided.", "authentication_error"),
    "402": _error(402, 402, "Insufficient credits.", "insufficient_quota_error"),
    "402_balance": _error(
        402, "account_balance_insufficient", "The balance of the account is insufficient."
    ),
    "403": _error(403, "model_not_allowed", "This key may not use this model.", "permission_error"),
    "403_quota": _error(403, "insufficient_user_quota", _QUOTA, "new_api_error"),
    "404": _error(404, "model_not_found", "The model does not exist."),
    "408": _json(408, {"error": "The request timed out."}),
    "413": _html(413, "Request Entity Too Large"),
    "422": _json(422, {"success": False, "code": 422, "msg": "The request cannot be processed."}),
    "429": _json(429, {"message": "Too many requests.", "type": "", "code": 429}, waits=True),
    "429_quota": _error(429, "insufficient_quota", _QUOTA, "insufficient_quota"),
    "429_daily_quota": _error(
        429, "daily_quota_exceeded", "The daily quota of this key is used up.", "quota_error"
    ),
    "500": _json(500, {"error": "Internal server error."}),
    "500_empty": StatusFault(500, b"", "text/plain"),
    "500_no_retry": StatusFault(
        500,
        error_body("Do not try again.", "server_error", "internal_error"),
        headers=(("x-should-retry", "false"),),
    ),
    "502": _html(502, "Bad Gateway"),
    "503": StatusFault(
        503, error_body("The server is overloaded.", "server_error", "overloaded"), waits=True
    ),
    "504": _html(504, "Gateway Time-out"),
    "520": _html(520, "Web server is returning an unknown error"),
    "524": _html(524, "A timeout occurred"),
    "no_channel": _error(503, "no_available_channel", _CHANNEL, "new_api_error"),
}

CONNECTION_FAULTS: Final[Mapping[str, str]] = {
    "reset": "the connection is reset (RST) before any answer",
    "close": "the connection is closed (FIN) before any answer",
    "hang": "no answer ever comes",
    "cut_body": "half of the announced content-length, then the end (of a stream: as abrupt)",
    "cut_stream": "half a stream, a clean chunked end, no finish_reason (plain: as cut_body)",
    "cut_stream_abrupt": "half a stream, then the connection is closed (plain: as cut_body)",
    "cut_stream_done": "half a stream and [DONE], but no finish_reason (plain: as cut_body)",
    "slow_drip": "the body comes byte by byte, one each `drip_seconds`",
    "html_200": "an HTML page with status 200",
    "error_200": "status 200 with an `error` key (in a stream too: a plain JSON body)",
    "huge": "an answer of `huge_bytes`",
    "bad_utf8": "bytes that are no UTF-8 within the answer",
    "bad_json": "an answer that is no JSON (in a stream: one event that is none)",
    "redirect": "307 to another host",
    "empty_200": "status 200 and no body",
    "stream_error_event": "an event with a top-level error amid the stream (plain: as error_200)",
    "content_filter": "half an answer with finish_reason content_filter",
    "length": "half an answer with finish_reason length",
}

FAULTS: Final = frozenset(STATUS_FAULTS) | frozenset(CONNECTION_FAULTS)
"""Every name that `Behaviour.faults` and a script may use."""

RUNS_MODEL: Final = frozenset(CONNECTION_FAULTS) - {
    "reset",
    "close",
    "hang",
    "html_200",
    "error_200",
    "redirect",
    "empty_200",
}
"""Faults of an answer that was made, and so is paid for: its tokens count."""
