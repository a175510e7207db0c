import time
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.gate import circuit
from worker.gate.gate import Ask, Gate, Grant, Report, Target
from worker.gate.meter import Caps, Told
from worker.gate.shelf import OwnShelf, Step

T = TypeVar("T")

ONE = Target("https://one.example", "aa", "gpt-5.1")
TWO = Target("https://two.example", "aa", "gpt-5.1")
BOTH = (ONE, TWO)


class ClockedShelf:
    """A shelf with a clock that is set."""

    def __init__(self) -> None:
        self.shelf = OwnShelf()
        self.late = 0.0

    def change(self, names: Any, step: Step[T]) -> T:
        return self.shelf.change(names, lambda states, now: step(states, now + self.late))


@pytest.fixture
def shelf() -> ClockedShelf:
    return ClockedShelf()


@pytest.fixture
def gate(shelf: ClockedShelf) -> Gate:
    return Gate(shelf, Caps(), "w")


def told(
    target: Target = ONE, *, well: bool | None = True, ago: float = -0.01, **of: Any
) -> Report:
    """What a call told; unless said otherwise, one begun surely after whatever was asked."""
    return Report(target, time.monotonic() - ago, fresh=True, well=well, told=Told(**of))


def prove(gate: Gate, *targets: Target, **of: Any) -> None:
    """Let a call to each target be answered."""
    for target in targets:
        assert gate.ask([Ask((target,), 1)], {})[0].count == 1
        gate.tell([told(target, proof=True, **of)], {})


def break_(gate: Gate, *targets: Target) -> None:
    """Open the circuits of these targets' endpoints."""
    for target in targets:
        gate.tell([told(target, well=False)] * circuit.FAILURES, {})


def ask(gate: Gate, targets: tuple[Target, ...] = BOTH, wanted: int = 10) -> Grant:
    (grant,) = gate.ask([Ask(targets, wanted)], {})
    return grant


def test_the_first_choice_is_granted_and_the_others_are_told(gate: Gate) -> None:
    prove(gate, ONE, TWO)
    assert ask(gate) == Grant(10, BOTH)


def test_where_the_first_choice_is_broken_the_second_is_granted(gate: Gate) -> None:
    prove(gate, ONE, TWO)
    break_(gate, ONE)
    assert ask(gate) == Grant(10, (TWO,))
    break_(gate, ONE)
    assert ask(gate, (ONE,)).count == 0


def test_one_broken_endpoint_is_broken_for_every_key_and_model(gate: Gate) -> None:
    other = Target(ONE.endpoint, "bb", "gemini")
    prove(gate, other)
    break_(gate, ONE)
    assert ask(gate, (other,)).count == 0


def test_where_all_are_broken_the_shortest_wait_is_told(gate: Gate, shelf: ClockedShelf) -> None:
    prove(gate, ONE, TWO)
    break_(gate, ONE)
    shelf.late = 0.5
    break_(gate, TWO)
    grant = ask(gate)
    assert (grant.count, grant.targets) == (0, ())
    assert 0 < grant.wait_seconds <= circuit.FIRST_REST_SECONDS - 0.5


def test_a_broken_endpoint_is_given_one_probe_when_it_has_rested(
    gate: Gate, shelf: ClockedShelf
) -> None:
    prove(gate, ONE, TWO)
    break_(gate, ONE, TWO)
    shelf.late = circuit.FIRST_REST_SECONDS + 0.1
    assert ask(gate) == Grant(1, BOTH, is_probe=True)
    assert ask(gate) == Grant(1, (TWO,), is_probe=True)
    assert ask(gate).count == 0
    gate.tell([told(ONE, proof=True)], {})
    assert ask(gate) == Grant(10, (ONE,))


def test_a_look_takes_nothing(gate: Gate, shelf: ClockedShelf) -> None:
    prove(gate, ONE, limit_requests=6_000)
    shelf.late = 5.0
    asks = [Ask((ONE,), 1_000)]
    looks = [gate.look(asks, {})[0].count for _ in range(3)]
    assert looks == [100] * 3
    assert gate.ask(asks, {})[0].count == 100
    assert gate.look(asks, {})[0].count <= 10  # what the clock has brought meanwhile


def test_a_look_takes_no_probe(gate: Gate, shelf: ClockedShelf) -> None:
    prove(gate, ONE)
    break_(gate, ONE)
    shelf.late = circuit.FIRST_REST_SECONDS + 0.1
    for act in (gate.look, gate.look, gate.ask):
        assert act([Ask((ONE,), 5)], {}) == [Grant(1, (ONE,), is_probe=True)]


def test_two_asks_for_one_target_share_its_limit_in_their_order(
    gate: Gate, shelf: ClockedShelf
) -> None:
    prove(gate, ONE, limit_requests=6_000)
    shelf.late = 5.0
    first, second, third = gate.ask([Ask((ONE,), 70), Ask(BOTH, 70), Ask((ONE,), 70)], {})
    assert (first.count, second.count, third.count) == (70, 30, 0)
    assert third.wait_seconds > 0


def test_settling_moves_leave_from_one_target_to_another(gate: Gate, shelf: ClockedShelf) -> None:
    prove(gate, ONE, TWO, limit_requests=600)
    shelf.late = 5.0
    assert ask(gate, (ONE,)).count == 10
    assert ask(gate, (TWO,), 0).count == 0
    gate.settle({ONE: 4, TWO: -4})
    one, two = gate.look([Ask((ONE,), 100), Ask((TWO,), 100)], {})
    assert 4 <= one.count <= 5
    assert 6 <= two.count <= 7


def test_nothing_to_settle_changes_nothing(gate: Gate) -> None:
    gate.settle({})
    gate.settle({ONE: 0})
    gate.tell([], {})
    assert gate.ask([], {}) == []


def test_a_wait_that_is_told_closes_a_target_for_all_workers(
    gate: Gate, shelf: ClockedShelf
) -> None:
    other = Gate(shelf, Caps(), "other")
    prove(gate, ONE)
    gate.tell([told(refused=True, wait_seconds=8.0)], {})
    for one in (gate, other):
        grant = ask(one, (ONE,))
        assert grant.count == 0
        assert 7 < grant.wait_seconds <= 8
    shelf.late = 8.0
    assert ask(other, (ONE,)).count >= 1


def test_a_wait_holds_the_model_and_key_it_was_told_of_only(gate: Gate) -> None:
    others = (
        Target(ONE.endpoint, "bb", ONE.model),
        Target(ONE.endpoint, ONE.key, "gemini"),
        TWO,
    )
    prove(gate, ONE, *others)
    gate.tell([told(refused=True, wait_seconds=8.0)], {})
    assert [ask(gate, (one,)).count for one in others] == [10, 10, 10]


def test_a_first_choice_at_its_limit_is_waited_for(gate: Gate) -> None:
    prove(gate, ONE, TWO)
    gate.tell([told(refused=True, wait_seconds=8.0)], {})
    grant = ask(gate)
    assert (grant.count, grant.targets) == (0, BOTH)


def test_what_says_nothing_of_its_endpoint_breaks_and_mends_nothing(gate: Gate) -> None:
    prove(gate, ONE)
    gate.tell([told(well=None)] * 10, {})
    assert ask(gate, (ONE,)).count == 10
    break_(gate, ONE)
    gate.tell([told(well=None)], {})
    assert ask(gate, (ONE,)).count == 0


def test_calls_from_before_it_broke_do_not_mend_it(gate: Gate) -> None:
    prove(gate, ONE)
    break_(gate, ONE)
    gate.tell([told(ago=30.0, proof=True)], {})
    assert ask(gate, (ONE,)).count == 0


def test_calls_of_other_workers_count_where_calls_in_flight_are_limited(
    shelf: ClockedShelf,
) -> None:
    one, other = Gate(shelf, Caps(), "one"), Gate(shelf, Caps(), "other")
    prove(one, ONE)
    assert one.ask([Ask((ONE,), 100)], {})[0].count == 100
    one.tell([told(refused=True)] * 2, {ONE: 100})  # 90 are what seems to be let in
    grant = ask(other, (ONE,))
    assert grant.count == 0
    assert grant.wait_seconds > 0


def test_caps_are_kept_for_each_target(shelf: ClockedShelf) -> None:
    gate = Gate(shelf, Caps(requests_per_minute=600), "w")
    for target in BOTH:
        assert ask(gate, (target,)).count == 1
        gate.tell([told(target, proof=True)], {})
    shelf.late = 10.0
    assert [ask(gate, (target,), 100).count for target in BOTH] == [10, 10]


@given(st.sampled_from([b"", b"?", b"[]", b"null", b'{"failures": "x"}', b'{"at": []}', b"\xff"]))
def test_states_that_nobody_can_read_begin_anew(state: bytes) -> None:
    shelf = OwnShelf()
    names = [f"circuit:{ONE.endpoint}", f"meter:{ONE.name}"]
    shelf.change(names, lambda _states, _now: ([state, state], None))
    gate = Gate(shelf, Caps(), "w")
    assert ask(gate, (ONE,)).count == 1
    gate.tell([told(proof=True)], {})
    assert ask(gate, (ONE,)).count == 10
