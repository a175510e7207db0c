from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.execution.upkeep import CONFIRM_SECONDS, Watch
from worker.store.leases import Sign

BEGAN = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = 30.0


def sign(beat: int, *, lapsed: bool = False, stopped: bool = False) -> Sign:
    return Sign("w", BEGAN + timedelta(seconds=beat), lapsed, stopped)


def watched(signs: Sequence[tuple[float, Sign]]) -> list[float]:
    """The moments at which a worker with these signs, seen then, counted as dead."""
    watch = Watch(LEASE)
    return [now for now, one in signs if watch.dead([one], now)]


def test_a_worker_that_renews_its_lease_lives() -> None:
    assert watched([(float(n), sign(n)) for n in range(100)]) == []


def test_a_lease_that_has_run_out_is_watched_before_it_counts() -> None:
    found = watched([(float(n), sign(0, lapsed=True)) for n in range(5)])
    assert found == [CONFIRM_SECONDS, CONFIRM_SECONDS + 1]


def test_a_worker_that_stopped_is_dead_at_once() -> None:
    assert watched([(0.0, sign(0, lapsed=True, stopped=True))]) == [0.0]


def test_a_clock_that_jumps_ahead_kills_nobody() -> None:
    before = [(float(n), sign(n)) for n in range(50)]
    # All leases have run out for a moment; then each worker renews its own.
    jump = [(50.0, sign(49, lapsed=True)), (51.0, sign(49, lapsed=True))]
    after = [(float(n), sign(3600 + n)) for n in range(52, 90)]
    assert watched([*before, *jump, *after]) == []


def test_a_dead_worker_is_found_after_a_clock_that_jumped_back() -> None:
    # Its lease runs for another hour by the database's clock.
    found = watched([(float(n), sign(3600)) for n in range(33)])
    assert found == [LEASE, LEASE + 1, LEASE + 2]


def test_a_database_that_was_away_kills_nobody() -> None:
    before = [(float(n), sign(n)) for n in range(10)]
    after = [
        (100.0, sign(9, lapsed=True)),
        (101.0, sign(9, lapsed=True)),
        *((float(n), sign(n)) for n in range(102, 110)),
    ]
    assert watched([*before, *after]) == []


def test_who_died_while_the_database_was_away_is_found_after_it() -> None:
    away = [(float(n), sign(9, lapsed=True)) for n in range(100, 105)]
    assert watched([(9.0, sign(9)), *away]) == [103.0, 104.0]
