import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.outcomes import ErrorClass, Failure, Phase
from worker.retry import Decision, GiveUp, RetryPolicy, TryAgain, backoff, decide

POLICY = RetryPolicy(
    max_attempts=4, backoff_base_seconds=1.0, backoff_cap_seconds=8.0, pause_seconds=30.0
)


class Dice(random.Random):
    """Always falls the same."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self._value = value

    def random(self) -> float:
        return self._value


def failure(
    error_class: ErrorClass, retry_after: float | None = None, status: int | None = None
) -> Failure:
    return Failure(
        error_class, "code", "words", Phase.SENT, status=status, retry_after_seconds=retry_after
    )


def decided(
    error_class: ErrorClass, attempts: int = 1, endpoints: int = 2, **fields: Any
) -> Decision:
    return decide(failure(error_class, **fields), attempts, POLICY, endpoints, Dice(0.0))


RETRY, DIVERT = ErrorClass.RETRY, ErrorClass.DIVERT
PERMANENT, PAUSE = ErrorClass.PERMANENT, ErrorClass.PAUSE


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        # the same endpoint once more, then the next one
        (decided(RETRY, 1), TryAgain(1.0)),
        (decided(RETRY, 2), TryAgain(2.0, divert=True)),
        (decided(RETRY, 3), TryAgain(4.0, divert=True)),
        (decided(RETRY, 4), GiveUp()),
        (decided(RETRY, 2, endpoints=1), TryAgain(2.0)),
        # what the server asks for is what it gets
        (decided(RETRY, 1, retry_after=20.0), TryAgain(20.0)),
        (decided(RETRY, 1, retry_after=0.0), TryAgain(0.0)),
        (decided(RETRY, 3, endpoints=1, retry_after=20.0), TryAgain(20.0)),
        # … but another endpoint did not ask, except that a rate limit is the key's
        (decided(RETRY, 3, retry_after=20.0), TryAgain(4.0, divert=True)),
        (decided(RETRY, 3, retry_after=20.0, status=429), TryAgain(20.0)),
        (decided(RETRY, 3, status=429), TryAgain(4.0)),
        (decided(RETRY, 4, retry_after=20.0), GiveUp()),
        # the next endpoint at once; a wait when all were tried
        (decided(DIVERT, 1), TryAgain(0.0, divert=True)),
        (decided(DIVERT, 2), TryAgain(2.0, divert=True)),
        (decided(DIVERT, 3), TryAgain(0.0, divert=True)),
        (decided(DIVERT, 4), GiveUp()),
        (decided(DIVERT, 2, retry_after=20.0), TryAgain(20.0, divert=True)),
        (decided(DIVERT, 2, retry_after=0.5), TryAgain(2.0, divert=True)),
        (decided(DIVERT, 1, endpoints=1), TryAgain(1.0)),
        # nothing to be done
        (decided(PERMANENT, 1), GiveUp()),
        # nothing can succeed now: wait as long as it takes, at nobody's cost
        (decided(PAUSE, 1), TryAgain(30.0, burns_attempt=False)),
        (decided(PAUSE, 99), TryAgain(30.0, burns_attempt=False)),
        (decided(PAUSE, 1, retry_after=600.0), TryAgain(600.0, burns_attempt=False)),
        (decided(PAUSE, 1, retry_after=0.0), TryAgain(30.0, burns_attempt=False)),
    ],
)
def test_the_policy_decides_as_its_table_says(decision: Decision, expected: Decision) -> None:
    assert decision == expected


waits = st.none() | st.floats(0, 7 * 86_400)
chances = st.floats(0, 1, exclude_max=True)
statuses = st.sampled_from([None, 429, 500])
failures = st.builds(failure, st.sampled_from(ErrorClass), waits, statuses)


@given(failures, st.integers(1, 10), st.integers(1, 4), chances)
def test_a_wait_is_never_negative_nor_shorter_than_the_endpoint_asked(
    failed: Failure, attempts: int, endpoints: int, chance: float
) -> None:
    decision = decide(failed, attempts, POLICY, endpoints, Dice(chance))
    if isinstance(decision, TryAgain):
        assert decision.delay_seconds >= 0
        asked = failed.retry_after_seconds
        if asked is not None and not decision.divert:
            assert asked <= decision.delay_seconds <= max(asked * 1.1, 30 * 1.1)


@given(failures, st.integers(1, 4), chances)
def test_a_job_ends_after_its_attempts_unless_it_pauses(
    failed: Failure, endpoints: int, chance: float
) -> None:
    decision = decide(failed, POLICY.max_attempts, POLICY, endpoints, Dice(chance))
    assert (decision == GiveUp()) == (failed.error_class is not PAUSE)


@given(failures, st.integers(1, 10), chances)
def test_with_one_endpoint_nothing_is_diverted(
    failed: Failure, attempts: int, chance: float
) -> None:
    decision = decide(failed, attempts, POLICY, 1, Dice(chance))
    assert decision == GiveUp() or (isinstance(decision, TryAgain) and not decision.divert)


@given(failures, st.integers(1, 10), chances)
def test_an_attempt_is_spared_only_by_a_pause(
    failed: Failure, attempts: int, chance: float
) -> None:
    decision = decide(failed, attempts, POLICY, 2, Dice(chance))
    if isinstance(decision, TryAgain):
        assert decision.burns_attempt == (failed.error_class is not PAUSE)


@given(st.integers(1, 10_000), chances)
def test_backoff_doubles_up_to_its_cap_and_loses_at_most_half(attempts: int, chance: float) -> None:
    full = min(2.0 ** min(attempts - 1, 60), 8.0)
    assert full / 2 <= backoff(attempts, POLICY, Dice(chance)) <= full


def test_many_failures_at_once_do_not_come_back_at_once() -> None:
    rng = random.Random(7)  # noqa: S311  # spreads waits, guards nothing
    told = failure(RETRY, 60.0)
    delays = [decide(told, 1, POLICY, 2, rng) for _ in range(200)]
    seconds = [one.delay_seconds for one in delays if isinstance(one, TryAgain)]
    assert max(seconds) - min(seconds) > 5.0
