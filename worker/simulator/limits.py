"""What a key may still do: requests and tokens per minute, calls in flight, credits.

Held by `worker.simulator.service`, one for the whole simulator, as all calls share one account.
It is given the time (seconds, monotonic) and never reads a clock.
"""

import math
from dataclasses import dataclass

from worker.simulator.behaviour import Behaviour


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call is turned away: the outcome for the ledger, and the wait (0: none is asked for)."""

    outcome: str
    message: str
    retry_after_seconds: float = 0.0


class Bucket:
    """`limit` units, full at first, refilled evenly within a minute. A limit of 0 is none."""

    __slots__ = ("_at", "_left", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._left = float(limit)
        self._at = now

    def wait_seconds(self, units: int, now: float) -> float:
        """Give the time until `units` can be taken: 0 for at once."""
        if not self.limit:
            return 0.0
        self._left = self._left_at(now)
        self._at = now
        missing = min(units, self.limit) - self._left
        return max(0.0, missing * 60 / self.limit)

    def take(self, units: int) -> None:
        """Take what `wait_seconds` has just found to be there."""
        self._left = max(0.0, self._left - units)

    def headers(self, unit: str, now: float) -> tuple[tuple[str, str], ...]:
        """Give the three headers; -1 says that there is no limit."""
        left = self._left_at(now)
        values = (self.limit, int(left)) if self.limit else (-1, -1)
        reset = (self.limit - left) * 60 / self.limit if self.limit else 0.0
        return (
            (f"x-ratelimit-limit-{unit}", str(values[0])),
            (f"x-ratelimit-remaining-{unit}", str(values[1])),
            (f"x-ratelimit-reset-{unit}", duration(reset)),
        )

    def _left_at(self, now: float) -> float:
        return min(float(self.limit), self._left + (now - self._at) * self.limit / 60)


class Account:
    """The buckets and the credits of one behaviour, from the moment it is set."""

    def __init__(self, behaviour: Behaviour, now: float) -> None:
        self._max_in_flight = behaviour.max_in_flight
        self._wait = behaviour.retry_after_seconds
        self._requests = Bucket(behaviour.requests_per_minute, now)
        self._tokens = Bucket(behaviour.tokens_per_minute, now)
        self._limited = bool(
            behaviour.requests_per_minute or behaviour.tokens_per_minute or behaviour.max_in_flight
        )
        self.credits = behaviour.credits
        self.used = 0

    def admit(self, tokens: int, in_flight: int, now: float) -> Refusal | None:
        """Let a call in, which takes from the buckets; or say why not, which takes nothing.

        `in_flight` counts this call too.
        """
        if self._max_in_flight and in_flight > self._max_in_flight:
            return Refusal("too_many_in_flight", "Too many concurrent requests.", self._wait)
        if self.credits == 0:
            return Refusal("out_of_credits", "Insufficient credits.")
        waits = self._requests.wait_seconds(1, now), self._tokens.wait_seconds(tokens, now)
        if max(waits) > 0:
            unit = "requests" if waits[0] >= waits[1] else "tokens"
            return Refusal("rate_limited", f"Rate limit reached for {unit}.", max(waits))
        self._requests.take(1)
        self._tokens.take(tokens)
        return None

    def charge(self) -> None:
        """Pay for one answer."""
        self.used += 1
        if self.credits is not None:
            self.credits -= 1

    def headers(self, now: float) -> tuple[tuple[str, str], ...]:
        """Give the x-ratelimit headers: none when nothing is limited."""
        if not self._limited:
            return ()
        return self._requests.headers("requests", now) + self._tokens.headers("tokens", now)


def duration(seconds: float) -> str:
    """Write a duration as the upstream's headers do: `12ms`, `1s`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
