"""The gate: asked before jobs are claimed, told after each call. One state for all workers.

Called by `worker.execution`. It knows endpoints, keys (by fingerprint) and models, but no job; the
arithmetic is in `meter` and `circuit`, the keeping in `shelf`.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from worker.gate import circuit, meter
from worker.gate.circuit import Circuit
from worker.gate.meter import Caps, Meter, Told
from worker.gate.shelf import Shelf, States


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call can go: an endpoint, with a key (its fingerprint), for a model."""

    endpoint: str
    key: str
    model: str

    @property
    def name(self) -> str:
        """The name under which its limits are kept."""
        return f"{self.endpoint}|{self.key}|{self.model}"


@dataclass(frozen=True, slots=True)
class Ask:
    """A wish to make `wanted` calls at the first of these targets whose endpoint is well."""

    targets: tuple[Target, ...]
    wanted: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave for `count` calls at the first of `targets`, those that are well, in order.

    Where `count` is 0, `wait_seconds` tells when it is worth asking again. `is_probe`: the endpoint
    was not well, and this one call is to see whether it is again.
    """

    count: int
    targets: tuple[Target, ...]
    wait_seconds: float = 0.0
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What one call told: of its endpoint (None: nothing), and of the limits it was made under.

    `began` is when, by this process's monotonic clock. `fresh`: it was its job's first try.
    """

    target: Target
    began: float
    fresh: bool
    well: bool | None
    told: Told


S = TypeVar("S", Circuit, Meter)
T = TypeVar("T")

Circuits = Mapping[str, Circuit]
"""By endpoint."""

Meters = Mapping[str, Meter]
"""By the target's name."""


class Gate:
    """Leave to make calls. Safe to use from any thread; `worker` tells the holders apart."""

    def __init__(self, shelf: Shelf, caps: Caps, worker: str) -> None:
        self._shelf = shelf
        self._caps = caps
        self._worker = worker

    def ask(self, asks: Sequence[Ask], in_flight: Mapping[Target, int]) -> list[Grant]:
        """Take leave for calls, in this order; `in_flight`: those this worker has, by target."""
        return self._ask(asks, in_flight, keep=True)

    def look(self, asks: Sequence[Ask], in_flight: Mapping[Target, int]) -> list[Grant]:
        """Tell what `ask` would grant; take nothing."""
        return self._ask(asks, in_flight, keep=False)

    def _ask(
        self, asks: Sequence[Ask], in_flight: Mapping[Target, int], *, keep: bool
    ) -> list[Grant]:
        every = {target for one in asks for target in one.targets}

        def step(circuits: Circuits, meters: Meters, now: float) -> list[Grant]:
            for one in circuits.values():
                circuit.heed_setback(one, now)
            for target in every:
                meter.hold(meters[target.name], self._worker, in_flight.get(target, 0), now)
            return [self._grant(each, circuits, meters, now) for each in asks]

        return self._change(every, step, keep=keep) if every else []

    def _grant(self, one: Ask, circuits: Circuits, meters: Meters, now: float) -> Grant:
        waits = {t: circuit.seconds_closed(circuits[t.endpoint], now) for t in one.targets}
        well = tuple(target for target in one.targets if waits[target] <= 0)
        if not well:
            return Grant(0, (), min(waits.values()))
        first = circuits[well[0].endpoint]
        wanted = 1 if first.is_open else one.wanted
        leave = meter.ask(meters[well[0].name], wanted, self._worker, self._caps, now)
        if first.is_open and leave.count:
            circuit.take_probe(first, now)
        return Grant(leave.count, well, leave.wait_seconds, first.is_open)

    def settle(self, used: Mapping[Target, int]) -> None:
        """Give back leave that was not used; a count below 0 takes what was used without it."""
        moved = {target: count for target, count in used.items() if count}

        def step(_circuits: Circuits, meters: Meters, _now: float) -> None:
            for target, count in moved.items():
                meter.give_back(meters[target.name], count)

        if moved:
            self._change(moved, step)

    def tell(self, reports: Sequence[Report], in_flight: Mapping[Target, int]) -> None:
        """Take in what calls told; `in_flight`: those this worker still has, by target."""
        every = {one.target for one in reports}

        def step(circuits: Circuits, meters: Meters, now: float) -> None:
            for target in every:
                meter.hold(meters[target.name], self._worker, in_flight.get(target, 0), now)
            for one in reports:
                # Told late, a call must not look as if it had begun late: cuts ask who came first.
                began_at = now - (time.monotonic() - one.began)
                if one.well is not None:
                    state = circuits[one.target.endpoint]
                    circuit.tell(state, began_at, now, well=one.well, fresh=one.fresh)
                meter.tell(meters[one.target.name], one.told, began_at, self._caps, now)

        if every:
            self._change(every, step)

    def _change(
        self,
        targets: Collection[Target],
        step: Callable[[Circuits, Meters, float], T],
        *,
        keep: bool = True,
    ) -> T:
        endpoints = sorted({target.endpoint for target in targets})
        meter_names = sorted({target.name for target in targets})
        split = len(endpoints)

        def on_states(states: States, now: float) -> tuple[States, T]:
            circuits = _decode(states[:split], Circuit)
            meters = _decode(states[split:], Meter)
            result = step(
                dict(zip(endpoints, circuits, strict=True)),
                dict(zip(meter_names, meters, strict=True)),
                now,
            )
            after = [*map(_encode, circuits), *map(_encode, meters)]
            return (after if keep else states), result

        names = [f"circuit:{endpoint}" for endpoint in endpoints]
        return self._shelf.change([*names, *(f"meter:{name}" for name in meter_names)], on_states)


def _decode(states: States, kind: type[S]) -> list[S]:
    """Read states; one that is not there, or of another version's form, begins anew."""
    return [_decoded(state, kind) for state in states]


def _decoded(state: bytes | None, kind: type[S]) -> S:
    if not state:
        return kind()
    try:
        return msgspec.json.decode(state, type=kind)
    except msgspec.MsgspecError:
        return kind()


def _encode(state: Circuit | Meter) -> bytes | None:
    return None if state == type(state)() else msgspec.json.encode(state)
