"""Where the gate's states are kept: in Redis, for all workers, or in this process alone.

A state is a small JSON text under a name. `change` reads some, lets a pure function make their
successors, and puts those down only if nobody else did in between; so the arithmetic exists once,
in Python, and a worker that dies holds no lock.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

KEPT_SECONDS: Final = 3_600
"""A state that nobody has touched for so long is forgotten."""

AWAY_SECONDS: Final = 5.0
"""After a failure Redis is left alone for so long."""

_TIMEOUT_SECONDS: Final = 2.0
_TRIES: Final = 50
_RACE_SECONDS: Final = 0.001

T = TypeVar("T")

States = list[bytes | None]
Step = Callable[[States, float], tuple[States, T]]
"""Given states (None: none yet) and the time, in seconds: their successors, and a result."""

log = structlog.get_logger(__name__)


class Shelf(Protocol):
    """Keeps states by their names."""

    def change(self, names: Sequence[str], step: Step[T]) -> T:
        """Replace the states by what the step makes of them; it may be run more than once."""
        ...


class OwnShelf:
    """The states of one process, for where there is no Redis, or while it is away."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, bytes | None] = {}

    def change(self, names: Sequence[str], step: Step[T]) -> T:
        """Replace the states by what the step makes of them."""
        with self._lock:
            before = [self._states.get(name) for name in names]
            after, result = step(before, time.time())
            self._states.update(zip(names, after, strict=True))
            return result


# Gives the time and the values. One clock for all workers: Redis' own.
_READ: Final = """
local t = redis.call('TIME')
local values = redis.call('MGET', unpack(KEYS))
return {t[1], t[2], values}
"""

# KEYS: names. ARGV: seconds to keep, then for each name what it was and what it is to be; an empty
# text for none. Gives 1 if done, 0 if anything was otherwise.
_REPLACE: Final = """
for i, name in ipairs(KEYS) do
  local found = redis.call('GET', name) or ''
  if found ~= ARGV[2 * i] then return 0 end
end
for i, name in ipairs(KEYS) do
  if ARGV[2 * i + 1] ~= ARGV[2 * i] then
    redis.call('SET', name, ARGV[2 * i + 1], 'EX', ARGV[1])
  end
end
return 1
"""


class SharedShelf:
    """The states of all workers, in Redis; while it is away each worker keeps its own."""

    def __init__(
        self, url: str, prefix: str = "chatqueue", away_seconds: float = AWAY_SECONDS
    ) -> None:
        self._redis = _connect(url)
        self._read = self._redis.register_script(_READ)
        self._replace = self._redis.register_script(_REPLACE)
        self._own = OwnShelf()
        self._prefix = f"{prefix}:gate:"
        self._away_seconds = away_seconds
        self._turn = threading.Lock()
        self._away_since: float | None = None
        self._next_try = 0.0

    def change(self, names: Sequence[str], step: Step[T]) -> T:
        """Replace the states by what the step makes of them."""
        if self._away_since is not None and time.monotonic() < self._next_try:
            return self._own.change(names, step)
        try:
            result = self._change(names, step)
        except redis.RedisError as error:
            self._note_away(error)
            return self._own.change(names, step)
        self._note_back()
        return result

    def _change(self, names: Sequence[str], step: Step[T]) -> T:
        keys = [self._prefix + name for name in names]
        for number in range(_TRIES):
            # Who lost a race waits a moment, each another one, or many would lose for ever.
            time.sleep(random.uniform(0.0, _RACE_SECONDS * number))  # noqa: S311  # no secret
            seconds, micros, values = self._read(keys=keys)
            after, result = step(values, int(seconds) + int(micros) / 1e6)
            pairs = [part for pair in zip(values, after, strict=True) for part in pair]
            words = [part or b"" for part in pairs]
            if words[::2] == words[1::2] or self._replace(keys=keys, args=[KEPT_SECONDS, *words]):
                return result
        raise redis.RedisError("the limits in Redis change too fast to be read")

    def _note_away(self, error: redis.RedisError) -> None:
        with self._turn:
            self._next_try = time.monotonic() + self._away_seconds
            if self._away_since is None:
                self._away_since = time.monotonic()
                log.error("lost", what="shared limits", error=type(error).__name__)

    def _note_back(self) -> None:
        if self._away_since is None:
            return
        with self._turn:
            if self._away_since is not None:
                seconds = round(time.monotonic() - self._away_since, 1)
                self._away_since = None
                log.info("back", what="shared limits", seconds=seconds)


def _connect(url: str) -> "redis.Redis":
    # The client's own ten tries would keep claims waiting for a server that is away.
    once = Retry(NoBackoff(), 0)
    if url.startswith("redis+socket://"):
        path, _, query = url.removeprefix("redis+socket://").partition("?")
        number = next((p[13:] for p in query.split("&") if p.startswith("virtual_host=")), "0")
        return redis.Redis(
            unix_socket_path=path, db=int(number), socket_timeout=_TIMEOUT_SECONDS, retry=once
        )
    return redis.Redis.from_url(
        url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS, retry=once
    )
