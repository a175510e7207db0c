"""Whether an endpoint is well: consecutive failures open its circuit, a probe closes it. Pure.

The state is a value that travels as JSON; the time (seconds of the shelf's clock) is given.
"""

from typing import Final

import msgspec

FAILURES: Final = 5
"""So many calls in a row that failed for the endpoint's own reasons open its circuit."""

FIRST_REST_SECONDS: Final = 1.0
LAST_REST_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 20.0
"""A probe that has told nothing for so long is lost, with its worker or its job: another may go."""


class Circuit(msgspec.Struct):
    """The state. `opened_at` is 0 while the endpoint is used."""

    failures: int = 0
    opened_at: float = 0.0
    rest_seconds: float = 0.0
    probe_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the endpoint is given nothing but probes."""
        return self.opened_at > 0


def heed_setback(circuit: Circuit, now: float) -> None:
    """Where the clock has been set back, set back all moments with it: else they never come."""
    if circuit.is_open and circuit.opened_at > now:
        circuit.probe_at -= circuit.opened_at - now
        circuit.opened_at = now
    circuit.probe_at = min(circuit.probe_at, now + PROBE_SECONDS)


def seconds_closed(circuit: Circuit, now: float) -> float:
    """Until a call may go: 0 for now, which of an open circuit means its probe."""
    return max(0.0, circuit.probe_at - now) if circuit.is_open else 0.0


def take_probe(circuit: Circuit, now: float) -> None:
    """Note that the one call which may go is going."""
    circuit.probe_at = now + PROBE_SECONDS


def tell(circuit: Circuit, began_at: float, now: float, *, well: bool, fresh: bool) -> None:
    """Take in how a call that began then left its endpoint.

    `fresh`: it was the first try of its job. A later one that fails may fail for the job's own
    reasons, so it opens no circuit. Of an open circuit only its probe tells anything: calls that
    began after it opened.
    """
    if began_at < circuit.opened_at if circuit.is_open else not (well or fresh):
        return
    if well:
        circuit.failures, circuit.opened_at, circuit.rest_seconds = 0, 0.0, 0.0
        return
    circuit.failures += 1
    if circuit.failures >= FAILURES:
        rest = circuit.rest_seconds * (2 if fresh else 1) or FIRST_REST_SECONDS
        circuit.rest_seconds = min(rest, LAST_REST_SECONDS)
        circuit.opened_at = now
        circuit.probe_at = now + circuit.rest_seconds
