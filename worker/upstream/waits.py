"""What reply headers say about time: how long to wait, and how much of a limit is left.

Called by `worker.upstream.faults` for failures, and by the client for the limits of every reply.
Pure: the time of day is a parameter. Headers come with keys in lower case, or in a mapping that
does not tell the cases apart. What cannot be read counts as not said.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from worker.jobs.outcomes import RateLimits

MAX_WAIT_SECONDS: Final = 7 * 86_400.0
"""The longest wait that is believed; a longer one is cut to this."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_STEP = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def read_rate_limits(headers: Mapping[str, str]) -> RateLimits | None:
    """Read the `x-ratelimit-*` headers; None if they say nothing."""
    limits = RateLimits(
        _count(headers.get("x-ratelimit-limit-requests")),
        _count(headers.get("x-ratelimit-remaining-requests")),
        duration_seconds(headers.get("x-ratelimit-reset-requests")),
        _count(headers.get("x-ratelimit-limit-tokens")),
        _count(headers.get("x-ratelimit-remaining-tokens")),
        duration_seconds(headers.get("x-ratelimit-reset-tokens")),
    )
    return None if limits == RateLimits() else limits


def asked_wait(headers: Mapping[str, str], now: datetime | None) -> float | None:
    """Give the wait in seconds that a refusal asks for; None if it names none.

    `retry-after-ms`, then `retry-after`, then the reset of a limit that is used up.
    """
    millis = _number(headers.get("retry-after-ms"))
    wait = millis / 1_000 if millis is not None else _retry_after(headers.get("retry-after"), now)
    if wait is None:
        wait = _exhausted_reset(headers)
    return None if wait is None else min(wait, MAX_WAIT_SECONDS)


def until_utc_midnight(now: datetime) -> float:
    """Give the seconds to the next 00:00 UTC, when daily quotas start anew."""
    moment = now.astimezone(UTC)
    midnight = datetime.combine(moment.date() + timedelta(days=1), time(), UTC)
    return (midnight - moment).total_seconds()


def duration_seconds(text: str | None) -> float | None:
    """Read a duration such as `12ms`, `1s`, `6m0s` or a bare number of seconds."""
    value = (text or "").strip().lower()
    if (number := _number(value)) is not None:
        return number
    if not value or _STEP.sub("", value):
        return None
    return sum(float(amount) * _UNITS[unit] for amount, unit in _STEP.findall(value))


def _exhausted_reset(headers: Mapping[str, str]) -> float | None:
    limits = read_rate_limits(headers)
    if limits is None:
        return None
    resets = (
        (limits.remaining_requests, limits.reset_requests_seconds),
        (limits.remaining_tokens, limits.reset_tokens_seconds),
    )
    return max((reset for left, reset in resets if left == 0 and reset is not None), default=None)


def _retry_after(text: str | None, now: datetime | None) -> float | None:
    number = _number(text)
    if number is not None or text is None or now is None:
        return number
    try:
        moment = parsedate_to_datetime(text)
        # a date without a zone is read as UTC: HTTP knows no other
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (aware - now).total_seconds())
    except (ValueError, OverflowError):  # such as a year of eleven digits
        return None


def _number(text: str | None) -> float | None:
    value = (text or "").strip()
    if not _NUMBER.fullmatch(value):
        return None
    number = float(value)
    return number if math.isfinite(number) else MAX_WAIT_SECONDS


def _count(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)
