"""The one table of errors: what a refusal, or a line that broke, means for the job that met it.

Called by `worker.upstream` for every call that brought no whole answer. Pure: it reads no clock and
no setting, and it waits for nobody. What to do about a `Failure` is `worker.retry`'s to decide.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from worker.jobs.outcomes import NO_CHANNEL, RATE_LIMITED, ErrorClass, Failure, Phase
from worker.upstream.texts import MAX_BODY, MAX_MESSAGE, bounded, page_title, storable
from worker.upstream.waits import asked_wait, until_utc_midnight

RATE_LIMIT_WAIT_SECONDS: Final = 60.0
"""What EvoLink's documentation asks for after a 429 that names no wait."""

UNAVAILABLE_WAIT_SECONDS: Final = 30.0
"""What EvoLink's documentation asks for after a 503 that names no wait."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error asks for, and its stable name."""

    error_class: ErrorClass
    code: str
    maybe_billed: bool = False


@dataclass(frozen=True, slots=True)
class ErrorText:
    """What an error body says, in whichever of its forms it came. Empty: it does not say."""

    code: str = ""
    type: str = ""
    message: str = ""


_RETRY, _DIVERT, _PERMANENT, _PAUSE = (
    ErrorClass.RETRY,
    ErrorClass.DIVERT,
    ErrorClass.PERMANENT,
    ErrorClass.PAUSE,
)

_QUOTA_CODE = re.compile(
    r"insufficient_(user_)?(quota|balance|credits?|funds)|(^|_)quota_(exceeded|exhausted|not_enough)"
    r"|balance_(insufficient|not_enough)|billing_(hard_limit_reached|not_active)|payment_required"
    r"|quota_failed$"
)
_QUOTA_MESSAGE = re.compile(r"quota|balance|credit|billing|余额|额度", re.IGNORECASE)
_DAILY = re.compile(r"daily|per[ _]day", re.IGNORECASE)
_NO_CHANNEL_MESSAGE = re.compile(
    r"no available channel|无可用渠道|model\b.{0,80}\b(unavailable|not available|overloaded)",
    re.IGNORECASE | re.DOTALL,
)
_REQUEST_ID = re.compile(r"\(request id: ([\w.-]{1,200})\)", re.IGNORECASE)


def _rows(error_class: ErrorClass, *codes: str, billed: bool = False) -> dict[str, Verdict]:
    return {code: Verdict(error_class, code, billed) for code in codes}


CODES: Final[Mapping[str, Verdict]] = {
    **dict.fromkeys(
        ("no_available_channel", "channel_not_available", "get_channel_failed"),
        Verdict(_RETRY, NO_CHANNEL),
    ),
    **dict.fromkeys(
        ("model_unavailable", "model_not_available", "model_overloaded"),
        Verdict(_RETRY, NO_CHANNEL),
    ),
    **_rows(_PAUSE, "invalid_api_key", "invalid_token", "invalid_authentication"),
    **_rows(_PAUSE, "authentication_error", "unauthorized", "account_deactivated"),
    **_rows(_PAUSE, "api_key_disabled", "api_key_expired", "token_disabled", "token_expired"),
    **_rows(_PERMANENT, "context_length_exceeded", "string_above_max_length", "request_too_large"),
    **_rows(_PERMANENT, "content_policy_violation", "content_filter", "moderation_blocked"),
    **_rows(_PERMANENT, "unsupported_parameter", "unsupported_value", "unknown_parameter"),
    **_rows(_PERMANENT, "invalid_request", "invalid_value", "invalid_type", "invalid_parameter"),
    **_rows(_PERMANENT, "missing_required_parameter", "invalid_image_url", "invalid_json"),
    **_rows(_PERMANENT, "model_not_found", "model_not_allowed", "model_access_denied"),
    **dict.fromkeys(
        ("rate_limit_exceeded", "rate_limit_error", "too_many_requests"),
        Verdict(_RETRY, RATE_LIMITED),
    ),
    **_rows(_RETRY, "overloaded_error", "engine_overloaded", "service_unavailable"),
    **_rows(_DIVERT, "gateway_timeout", "upstream_timeout", billed=True),
}
"""Codes and types that decide by themselves, whatever the status."""

GENERAL_CODES: Final[Mapping[str, Verdict]] = {
    **_rows(_PERMANENT, "invalid_request_error", "not_found_error"),
    **_rows(_PERMANENT, "permission_error", "permission_denied"),
    **_rows(_RETRY, "server_error", "internal_error", "internal_server_error", "api_error"),
    **_rows(_RETRY, "upstream_error", "timeout"),
}
"""Codes and types too general to overrule an error status: OpenAI sends `invalid_request_error`
with a 401 too. They count where an error came with a status of success."""

STATUSES: Final[Mapping[int, Verdict]] = {
    400: Verdict(_PERMANENT, "invalid_request"),
    401: Verdict(_PAUSE, "invalid_api_key"),
    402: Verdict(_PAUSE, "insufficient_quota"),
    403: Verdict(_PERMANENT, "forbidden"),
    404: Verdict(_PERMANENT, "not_found"),
    408: Verdict(_RETRY, "request_timeout"),
    409: Verdict(_RETRY, "conflict"),
    413: Verdict(_PERMANENT, "request_too_large"),
    422: Verdict(_PERMANENT, "unprocessable"),
    425: Verdict(_RETRY, "too_early"),
    429: Verdict(_RETRY, RATE_LIMITED),
    500: Verdict(_RETRY, "server_error"),
    502: Verdict(_RETRY, "bad_gateway"),
    503: Verdict(_RETRY, "service_unavailable"),
    504: Verdict(_DIVERT, "gateway_timeout", maybe_billed=True),
    **{
        status: Verdict(_DIVERT, f"edge_error_{status}", maybe_billed=True)
        for status in range(520, 531)
    },
}


def classify(status: int, error: ErrorText) -> Verdict:
    """Find what an error means: by its code, then its type, then the status.

    A code that is a number is a status: it takes the place of the one the reply came with.
    """
    status = _effective_status(status, error.code)
    verdict = _by_name(status, error) or _by_message(status, error) or _by_status(status, error)
    billed = verdict.maybe_billed or STATUSES.get(status, verdict).maybe_billed
    return Verdict(verdict.error_class, verdict.code, billed)


def _effective_status(status: int, code: str) -> int:
    return int(code) if re.fullmatch(r"[45]\d\d", code, re.ASCII) else status


def _by_name(status: int, error: ErrorText) -> Verdict | None:
    for name in (error.code.lower(), error.type.lower()):
        if _QUOTA_CODE.search(name):
            return Verdict(_PAUSE, name)
        # A gateway says `model_not_found` with a 503 where only its channels are used up.
        if name in CODES and not (name == "model_not_found" and status >= 500):
            return CODES[name]
    return None


def _by_message(status: int, error: ErrorText) -> Verdict | None:
    if status in (400, 503) and _NO_CHANNEL_MESSAGE.search(error.message):
        return Verdict(_RETRY, NO_CHANNEL)
    if status == 403 and _QUOTA_MESSAGE.search(error.message):
        return Verdict(_PAUSE, "insufficient_quota")
    return None


def _by_status(status: int, error: ErrorText) -> Verdict:
    if status in STATUSES:
        return STATUSES[status]
    if 400 <= status < 500:
        return Verdict(_PERMANENT, f"http_{status}")
    if status >= 500:
        return Verdict(_RETRY, f"http_{status}")
    for name in (error.code.lower(), error.type.lower()):
        if name in GENERAL_CODES:
            return GENERAL_CODES[name]
    # An error nobody has named yet, under a status of success: its outcome is unknown.
    return Verdict(_RETRY, "upstream_error", maybe_billed=True)


def read_failure(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    phase: Phase = Phase.ANSWERING,
    now: datetime | None = None,
) -> Failure:
    """Read a reply that holds no answer.

    `headers`: keys in lower case, or a mapping that does not tell the cases apart. `now` (aware)
    turns dates into waits; without it a wait given as a date is not seen.
    """
    text = body.decode(errors="replace")
    if 300 <= status < 400:
        return _redirect(status, headers, phase)
    error = error_text(text)
    verdict = _heed_header(_heed_page(classify(status, error), status, text), headers)
    found = _REQUEST_ID.search(error.message)
    asked = asked_wait(headers, now)
    return Failure(
        verdict.error_class,
        verdict.code,
        bounded(error.message or _silent(status, text), MAX_MESSAGE),
        phase,
        maybe_billed=verdict.maybe_billed,
        status=status,
        request_id=request_id_of(headers) or (found[1] if found else None),
        retry_after_seconds=_usual_wait(status, error, verdict, now) if asked is None else asked,
        wait_asked=asked is not None,
        body=bounded(text, MAX_BODY) or None,
    )


def _redirect(status: int, headers: Mapping[str, str], phase: Phase) -> Failure:
    """Refuse a redirect: following it would carry the key to a host nobody has named.

    It tells of the endpoint and nothing of the request, which another endpoint may well answer.
    """
    location = headers.get("location") or ""
    try:
        host = urlsplit(location).hostname or "the same host"
    except ValueError:
        host = "an unreadable address"
    message = f"HTTP {status}: a redirect to {host} was refused; check the base URL of the endpoint"
    return Failure(
        _DIVERT,
        "redirect_refused",
        bounded(message, MAX_MESSAGE),
        phase,
        status=status,
        request_id=request_id_of(headers),
    )


def _heed_page(verdict: Verdict, status: int, text: str) -> Verdict:
    """Send a request that a page refused elsewhere: a firewall spoke, not the API."""
    if status == 403 and page_title(text) is not None:
        return Verdict(_DIVERT, "blocked_by_firewall")
    return verdict


def _heed_header(verdict: Verdict, headers: Mapping[str, str]) -> Verdict:
    """Let `x-should-retry` overrule the table. A pause stays: it is no verdict on the request."""
    word = (headers.get("x-should-retry") or "").strip().lower()
    if verdict.error_class is _PAUSE or word not in ("true", "false"):
        return verdict
    error_class = _RETRY if word == "true" else _PERMANENT
    return Verdict(error_class, verdict.code, verdict.maybe_billed)


def _usual_wait(
    status: int, error: ErrorText, verdict: Verdict, now: datetime | None
) -> float | None:
    """Choose the wait where the headers ask for none: a daily quota's reset, the documented one."""
    if verdict.error_class is _PAUSE:
        daily = _DAILY.search(f"{error.code} {error.type} {error.message}")
        return until_utc_midnight(now) if daily and now else None
    if verdict.error_class is not _RETRY:
        return None
    waits = {429: RATE_LIMIT_WAIT_SECONDS, 503: UNAVAILABLE_WAIT_SECONDS}
    by_name = {RATE_LIMITED: 429, "service_unavailable": 503}
    return waits.get(by_name.get(verdict.code) or _effective_status(status, error.code))


def _silent(status: int, text: str) -> str:
    """Describe a reply that gives no message of its own."""
    if (title := page_title(text)) is not None:
        return f"HTTP {status}: a page of HTML came in place of an answer" + (
            f': "{title}"' if title else ""
        )
    if not text.strip():
        return f"HTTP {status} with an empty body"
    return f"HTTP {status}: {text.strip()}"


def error_text(text: str) -> ErrorText:
    """Read an error body in any of the forms that were seen; what is no JSON says nothing."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return ErrorText()
    return error_in(value)


def error_in(value: Any) -> ErrorText:
    """Read an error out of a JSON value: `{error: {…}}`, `{error: text}`, `{code, msg}`."""
    if isinstance(value, list) and value:
        return error_in(value[0])
    if not isinstance(value, dict):
        return ErrorText(message=_words(value))
    inner = value.get("error") or value.get("errors")
    if isinstance(inner, str):
        return ErrorText(_words(value.get("code")), _words(value.get("type")), storable(inner))
    if inner:
        return error_in(inner)
    message = next((value[key] for key in ("message", "msg", "detail") if value.get(key)), None)
    return ErrorText(_words(value.get("code")), _words(value.get("type")), _words(message))


def _words(value: Any) -> str:
    """Give a JSON value as text: a name as it is, a number in digits, anything deeper as JSON."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return storable(value.strip())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return storable(msgspec.json.encode(value).decode())


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Give the upstream's name for a call, if it gave one."""
    found = headers.get("x-request-id") or headers.get("x-oneapi-request-id")
    return storable(found)[:200] if found else None


class TransportFault(StrEnum):
    """How a call can break on its way. The value is the failure's `code`."""

    DNS = "dns_failed"
    CONNECTION_REFUSED = "connection_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS = "tls_failed"
    RESET = "connection_reset"
    DISCONNECTED = "server_disconnected"
    READ_TIMEOUT = "read_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    PAYLOAD_CUT = "payload_cut"
    TOO_LARGE = "answer_too_large"
    DECODING = "answer_undecodable"


TRANSPORT: Final[Mapping[TransportFault, tuple[ErrorClass, Phase]]] = {
    TransportFault.DNS: (_DIVERT, Phase.CONNECTING),
    TransportFault.CONNECTION_REFUSED: (_DIVERT, Phase.CONNECTING),
    TransportFault.CONNECT_TIMEOUT: (_DIVERT, Phase.CONNECTING),
    TransportFault.TLS: (_DIVERT, Phase.CONNECTING),
    TransportFault.RESET: (_DIVERT, Phase.SENT),
    TransportFault.DISCONNECTED: (_DIVERT, Phase.SENT),
    TransportFault.READ_TIMEOUT: (_DIVERT, Phase.SENT),
    TransportFault.TOTAL_TIMEOUT: (_DIVERT, Phase.SENT),
    TransportFault.PAYLOAD_CUT: (_DIVERT, Phase.ANSWERING),
    # No model writes that much: it is the endpoint that has gone wrong, not the request.
    TransportFault.TOO_LARGE: (_DIVERT, Phase.ANSWERING),
    TransportFault.DECODING: (_DIVERT, Phase.ANSWERING),
}


def transport_failure(
    kind: TransportFault, message: str, *, phase: Phase | None = None, status: int | None = None
) -> Failure:
    """Make a failure of a call that broke.

    `phase`: how far it came, if the caller knows better than the kind tells, such as a reset in
    the middle of an answer. Whatever left this machine may have been billed.
    """
    error_class, usual = TRANSPORT[kind]
    phase = phase or usual
    return Failure(
        error_class,
        kind.value,
        bounded(storable(message) or kind.value.replace("_", " "), MAX_MESSAGE),
        phase,
        maybe_billed=phase is not Phase.CONNECTING,
        status=status,
    )
