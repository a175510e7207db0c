"""A world of workers and a server with limits, by a clock of its own: what a meter does in it."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.gate import meter
from worker.gate.meter import Caps, Meter, Told

ASK_SECONDS = 0.1


@dataclass
class Server:
    """Limits as a real one has them: a bucket of requests, full at first, and calls in flight."""

    requests_per_minute: int = 0
    in_flight_limit: int = 0
    latency: float = 1.0
    wait_seconds: float = 0.0
    tells: bool = True
    burst: float | None = None
    left: float = 0.0
    at: float = 0.0
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.left = float(self.requests_per_minute if self.burst is None else self.burst)

    def admit(self, now: float) -> Told | None:
        """Turn a call away (with what it is told), or let it in."""
        full = float(self.requests_per_minute if self.burst is None else self.burst)
        self.left = min(full, self.left + (now - self.at) * self.requests_per_minute / 60)
        self.at = now
        over_rate = bool(self.requests_per_minute) and self.left < 1
        if over_rate or (self.in_flight_limit and self.in_flight >= self.in_flight_limit):
            wait = self.wait_seconds
            if over_rate:
                wait = max(wait, (1 - self.left) * 60 / self.requests_per_minute)
            return self._told(refused=True, wait=wait)
        self.left -= 1
        self.in_flight += 1
        return None

    def answer(self) -> Told:
        """End a call."""
        self.in_flight -= 1
        return self._told(refused=False, wait=None)

    def _told(self, *, refused: bool, wait: float | None) -> Told:
        known = self.tells and self.requests_per_minute > 0
        return Told(
            refused=refused,
            proof=not refused,
            wait_seconds=wait,
            tokens=100,
            limit_requests=self.requests_per_minute if known else None,
            remaining_requests=int(self.left) if known else None,
        )


@dataclass
class Stormy(Server):
    """A server without limits that, for a few seconds, turns four calls of five away."""

    begins: float = 1_020.0
    ends: float = 1_023.4
    dice: random.Random = field(default_factory=random.Random)

    def admit(self, now: float) -> Told | None:
        """Turn a call away, or let it in."""
        if self.begins <= now < self.ends and self.dice.random() < 0.8:
            return Told(refused=True, wait_seconds=self.wait_seconds)
        return super().admit(now)


@dataclass
class Strewing(Server):
    """A server without limits that turns one call in two hundred away, for no reason of ours."""

    dice: random.Random = field(default_factory=random.Random)

    def admit(self, now: float) -> Told | None:
        """Turn a call away, or let it in."""
        if self.dice.random() < 1 / 200:
            return Told(refused=True, wait_seconds=self.wait_seconds)
        return super().admit(now)


@dataclass
class Windowed(Server):
    """A server that counts from minute to minute: a window that is used up refuses everything."""

    window: int = 0
    used: int = 0

    def admit(self, now: float) -> Told | None:
        """Turn a call away, or let it in."""
        if int(now // 60) != self.window:
            self.window, self.used = int(now // 60), 0
        if self.used >= self.requests_per_minute:
            return Told(refused=True, wait_seconds=self.wait_seconds or None)
        self.used += 1
        self.in_flight += 1
        return None


@dataclass
class World:
    """Workers that always have work for all their slots, and what became of their calls."""

    server: Server
    workers: int = 2
    slots: int = 50
    caps: Caps = field(default_factory=Caps)
    meter: Meter = field(default_factory=Meter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def run(self, seconds: float, until: Callable[["World"], bool] = lambda _: False) -> "World":
        """Let time pass."""
        order = itertools.count()
        flying = [0] * self.workers
        events: list[tuple[float, int, str, int, float]] = [
            (1_000 + ASK_SECONDS * n / self.workers, next(order), "ask", n, 0.0)
            for n in range(self.workers)
        ]
        while events and events[0][0] < 1_000 + seconds and not until(self):
            now, _, what, worker, began = heapq.heappop(events)
            if what == "ask":
                name = str(worker)
                meter.hold(self.meter, name, flying[worker], now)
                free = self.slots - flying[worker]
                leave = meter.ask(self.meter, free, name, self.caps, now)
                for _ in range(leave.count):
                    flying[worker] += 1
                    heapq.heappush(events, (now + 0.005, next(order), "arrive", worker, now))
                wait = max(leave.wait_seconds, ASK_SECONDS) if not leave.count else ASK_SECONDS
                heapq.heappush(events, (now + wait, next(order), "ask", worker, 0.0))
                continue
            if what == "arrive":
                told = self.server.admit(now)
                if told is None:
                    end = now + self.server.latency
                    heapq.heappush(events, (end, next(order), "end", worker, began))
                    continue
                self.refused.append(now - 1_000)
            else:
                told = self.server.answer()
                self.answered.append(now - 1_000)
            flying[worker] -= 1
            meter.hold(self.meter, str(worker), flying[worker], now)
            meter.tell(self.meter, told, began, self.caps, now)
        return self

    def rate(self, begin: float, end: float) -> float:
        """Answers a second between two moments."""
        return sum(begin <= at < end for at in self.answered) / (end - begin)

    def refused_share(self, begin: float, end: float) -> float:
        """Which share of the calls between two moments was turned away."""
        no = sum(begin <= at < end for at in self.refused)
        yes = sum(begin <= at < end for at in self.answered)
        return no / max(1, no + yes)
