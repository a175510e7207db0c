import msgspec
import pytest

from worker.gate import circuit
from worker.gate.circuit import (
    FAILURES,
    FIRST_REST_SECONDS,
    LAST_REST_SECONDS,
    PROBE_SECONDS,
    Circuit,
)

NOW = 1_000.0


def fail(state: Circuit, now: float, began_at: float | None = None, *, fresh: bool = True) -> None:
    circuit.tell(state, now if began_at is None else began_at, now, well=False, fresh=fresh)


def succeed(state: Circuit, now: float, began_at: float | None = None) -> None:
    circuit.tell(state, now if began_at is None else began_at, now, well=True, fresh=True)


def opened() -> Circuit:
    """A circuit that has opened now."""
    state = Circuit()
    for _ in range(FAILURES):
        fail(state, NOW)
    assert state.is_open
    return state


def probe(state: Circuit) -> float:
    """Take the probe as soon as it is due; return when that is."""
    due = state.probe_at
    assert circuit.seconds_closed(state, due) == 0
    circuit.take_probe(state, due)
    return due


def test_a_circuit_opens_after_so_many_failures_in_a_row() -> None:
    state = Circuit()
    for n in range(FAILURES):
        assert not state.is_open
        assert circuit.seconds_closed(state, NOW) == 0
        fail(state, NOW + n)
    assert state.is_open
    assert circuit.seconds_closed(state, NOW + FAILURES - 1) == FIRST_REST_SECONDS


def test_a_success_in_between_begins_the_count_anew() -> None:
    state = Circuit()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            fail(state, NOW)
        succeed(state, NOW)
    assert state == Circuit()


def test_failures_of_jobs_that_failed_before_open_nothing() -> None:
    state = Circuit()
    for _ in range(10 * FAILURES):
        fail(state, NOW, fresh=False)
    assert state == Circuit()


@pytest.mark.parametrize("well", [True, False])
def test_calls_from_before_it_opened_tell_nothing(*, well: bool) -> None:
    state, before = opened(), opened()
    circuit.tell(state, NOW - 0.1, NOW + 10, well=well, fresh=True)
    assert state == before


def test_one_probe_goes_at_a_time() -> None:
    state = opened()
    assert circuit.seconds_closed(state, NOW + 0.5) == pytest.approx(FIRST_REST_SECONDS - 0.5)
    due = probe(state)
    assert circuit.seconds_closed(state, due) == PROBE_SECONDS


def test_a_probe_that_succeeds_closes_it() -> None:
    state = opened()
    due = probe(state)
    succeed(state, due + 1, due)
    assert not state.is_open
    assert circuit.seconds_closed(state, due + 1) == 0
    assert state.rest_seconds == 0


def test_closed_again_it_takes_as_many_failures_to_open() -> None:
    state = opened()
    due = probe(state)
    succeed(state, due)
    for _ in range(FAILURES - 1):
        fail(state, due + 1)
    assert not state.is_open


def test_each_probe_that_fails_doubles_the_rest_up_to_a_longest() -> None:
    state, rests = opened(), []
    for _ in range(6):
        rests.append(state.rest_seconds)
        due = probe(state)
        fail(state, due + 0.5, due)
        assert circuit.seconds_closed(state, due + 0.5) == state.rest_seconds
    assert rests == [1, 2, 4, 8, LAST_REST_SECONDS, LAST_REST_SECONDS]


def test_a_probe_with_a_job_that_failed_before_leaves_the_rest_as_long_as_it_was() -> None:
    state = opened()
    due = probe(state)
    fail(state, due + 0.5, due, fresh=False)
    assert state.is_open
    assert state.rest_seconds == FIRST_REST_SECONDS
    assert circuit.seconds_closed(state, due + 0.5) == FIRST_REST_SECONDS


def test_a_probe_with_a_job_that_failed_before_closes_it_all_the_same() -> None:
    state = opened()
    due = probe(state)
    circuit.tell(state, due, due + 1, well=True, fresh=False)
    assert not state.is_open
    assert state.failures == 0


def test_a_probe_that_tells_nothing_is_replaced() -> None:
    state = opened()
    due = probe(state)
    assert circuit.seconds_closed(state, due + PROBE_SECONDS - 1) == pytest.approx(1)
    assert circuit.seconds_closed(state, due + PROBE_SECONDS) == 0


def test_a_state_survives_being_written_down() -> None:
    state = opened()
    assert msgspec.json.decode(msgspec.json.encode(state), type=Circuit) == state


def test_a_clock_that_is_set_back_does_not_keep_a_circuit_open() -> None:
    state = opened()
    earlier = NOW - 900.0
    circuit.heed_setback(state, earlier)
    assert circuit.seconds_closed(state, earlier) == pytest.approx(FIRST_REST_SECONDS)
    began_at = probe(state)
    succeed(state, began_at + 1.0, began_at)
    assert not state.is_open


def test_a_probe_is_not_waited_for_longer_than_a_probe_takes() -> None:
    state = opened()
    circuit.take_probe(state, NOW + 600.0)
    circuit.heed_setback(state, NOW + 1.0)
    assert circuit.seconds_closed(state, NOW + 1.0) == PROBE_SECONDS
