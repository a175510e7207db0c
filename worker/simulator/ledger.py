"""What the simulator was asked and what it did: one `Call` for every chat call, and the counts.

Written by `worker.simulator.service`; read over HTTP (`/_simulator/ledger`, `/_simulator/summary`)
and by tests through `SimulatorThread`. It keeps no prompt and no answer: about 400 bytes a call,
and no bound on their number. With `keep=False` it only counts, for benchmarks.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping

from msgspec import Struct


class Call(Struct, gc=False):
    """One chat call that was received whole.

    `arrived_seconds` counts from the start of the ledger (monotonic), `arrived_at` is Unix time.
    `outcome` is "ok", "replayed", the name of a fault, or why it was refused: `unauthorized`,
    `invalid`, `too_large`, `unknown_model`, `rate_limited`, `too_many_in_flight`, `out_of_credits`.
    `status` is the one sent, 0 if none is. `tokens` are those of an answer that was made, whether
    or not it arrived. `answered`: all of it was handed to the connection. `disconnected`: the
    client (or a closing simulator) ended the connection before that. Neither: under way, or cut
    off by the fault itself.
    """

    number: int
    path: str
    arrived_seconds: float
    arrived_at: float
    body_sha256: str
    idempotency_key: str | None = None
    job: str | None = None
    client_request_id: str | None = None
    model: str | None = None
    stream: bool = False
    outcome: str = "ok"
    status: int = 200
    tokens: int = 0
    answered: bool = False
    disconnected: bool = False


class Summary(Struct):
    """The counts. Those of bodies are None when the calls are not kept."""

    calls: int
    answered: int
    disconnected: int
    tokens: int
    in_flight: int
    peak_in_flight: int
    outcomes: Mapping[str, int]
    statuses: Mapping[str, int]
    distinct_bodies: int | None = None
    repeated_bodies: int | None = None


class Ledger:
    """All calls since the start or the last `reset`, numbered from 1."""

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget all calls; the next is number 1 again, and so meets the fate of number 1.

        A call in flight stays so, and counts as answered or disconnected when it ends.
        """
        self._calls: list[Call] = []
        self._started = time.monotonic()
        self._number = self._tokens = self._answered = self._disconnected = 0
        self._outcomes: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._peak = self.in_flight

    def arrive(self, path: str, body_sha256: str) -> Call:
        """Enter a call that has just been received; it is in flight until `leave`."""
        self._number += 1
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        elapsed = time.monotonic() - self._started
        call = Call(self._number, sys.intern(path), elapsed, time.time(), body_sha256)
        if self.keep:
            self._calls.append(call)
        return call

    def decide(self, call: Call, outcome: str, status: int, tokens: int) -> None:
        """Note what the call will come to."""
        call.outcome, call.status, call.tokens = outcome, status, tokens
        self._outcomes[outcome] += 1
        self._statuses[status] += 1
        self._tokens += tokens

    def leave(self, call: Call, *, answered: bool, disconnected: bool) -> None:
        """Note how the call ended."""
        self.in_flight -= 1
        call.answered, call.disconnected = answered, disconnected
        self._answered += answered
        self._disconnected += disconnected

    def calls(self, after: int = 0, limit: int | None = None) -> list[Call]:
        """Give the calls with a number above `after`, in order of arrival; the records are live."""
        end = None if limit is None else after + limit
        return self._calls[after:end]

    def summary(self) -> Summary:
        """Count. With calls kept this walks over all of them."""
        bodies = Counter(call.body_sha256 for call in self._calls)
        return Summary(
            calls=self._number,
            answered=self._answered,
            disconnected=self._disconnected,
            tokens=self._tokens,
            in_flight=self.in_flight,
            peak_in_flight=self._peak,
            outcomes=dict(self._outcomes),
            statuses={str(status): count for status, count in self._statuses.items()},
            distinct_bodies=len(bodies) if self.keep else None,
            repeated_bodies=sum(n > 1 for n in bodies.values()) if self.keep else None,
        )
