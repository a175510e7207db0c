import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.outcomes import NO_CHANNEL, NOT_JSON, SCHEMA_MISMATCH, ErrorClass, Failure, Phase
from worker.retry import (
    MOST_CALLS_SPARED,
    Decision,
    GiveUp,
    Hold,
    RetryPolicy,
    Standing,
    TryAgain,
    backoff,
    decide,
)
from worker.settings import Settings, UnknownOutcome

POLICY = RetryPolicy(max_attempts=4, backoff_base_seconds=1.0, backoff_cap_seconds=8.0)


class Dice(random.Random):
    """Always falls the same."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self._value = value

    def random(self) -> float:
        return self._value


def failure(
    error_class: ErrorClass,
    retry_after: float | None = None,
    status: int | None = None,
    code: str = "code",
    **fields: Any,
) -> Failure:
    return Failure(
        error_class, code, "words", Phase.SENT, status=status, retry_after_seconds=retry_after,
        **fields,
    )  # fmt: skip


def stands(attempts: int = 1, endpoints: int = 2, calls: int | None = None) -> Standing:
    return Standing(attempts, calls or attempts, endpoints)


def decided(
    error_class: ErrorClass,
    attempts: int = 1,
    endpoints: int = 2,
    calls: int | None = None,
    **fields: Any,
) -> Decision:
    standing = stands(attempts, endpoints, calls)
    return decide(failure(error_class, **fields), standing, POLICY, Dice(0.0))


def put_off(seconds: float, *, divert: bool = False) -> TryAgain:
    return TryAgain(seconds, divert=divert, burns_attempt=False)


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
        # for want of a channel: each endpoint twice
        (decided(RETRY, 1, code=NO_CHANNEL), TryAgain(1.0)),
        (decided(RETRY, 2, code=NO_CHANNEL), TryAgain(2.0, divert=True)),
        (decided(RETRY, 3, code=NO_CHANNEL), TryAgain(4.0)),
        (decided(RETRY, 2, endpoints=1, code=NO_CHANNEL), TryAgain(2.0)),
        (decided(RETRY, 4, code=NO_CHANNEL), GiveUp()),
        # the wait that the documentation names
        (decided(RETRY, 1, retry_after=20.0), TryAgain(20.0)),
        (decided(RETRY, 1, retry_after=0.0), TryAgain(0.0)),
        (decided(RETRY, 3, endpoints=1, retry_after=20.0), TryAgain(20.0)),
        # … but the next endpoint is another's
        (decided(RETRY, 3, retry_after=20.0), TryAgain(4.0, divert=True)),
        (decided(RETRY, 4, retry_after=20.0), GiveUp()),
        # what the server itself asks for is what it gets, at no cost
        (decided(RETRY, 1, retry_after=20.0, wait_asked=True), put_off(20.0)),
        (decided(RETRY, 4, endpoints=1, retry_after=20.0, wait_asked=True), put_off(20.0)),
        # … and the next endpoint is tried meanwhile
        (decided(RETRY, 1, calls=2, retry_after=20.0, wait_asked=True), put_off(20.0, divert=True)),
        # … without spinning
        (decided(RETRY, 1, retry_after=0.0, wait_asked=True), put_off(1.0)),
        # … and not for ever
        (
            decided(
                RETRY,
                1,
                calls=MOST_CALLS_SPARED - 1,
                endpoints=1,
                retry_after=20.0,
                wait_asked=True,
            ),
            put_off(20.0),
        ),
        (
            decided(
                RETRY, 1, calls=MOST_CALLS_SPARED, endpoints=1, retry_after=20.0, wait_asked=True
            ),
            TryAgain(20.0),
        ),
        (decided(RETRY, 4, calls=MOST_CALLS_SPARED, retry_after=20.0, wait_asked=True), GiveUp()),
        # a rate limit is the key's, whichever endpoint said it, and costs nothing however long
        (decided(RETRY, 3, retry_after=20.0, status=429), put_off(20.0)),
        (decided(RETRY, 3, status=429), put_off(4.0)),
        (decided(RETRY, 1, calls=9_999, status=429), put_off(8.0)),
        (decided(RETRY, 4, calls=9_999, retry_after=20.0, status=429), put_off(20.0)),
        (decided(RETRY, 1, retry_after=0.0, status=429, wait_asked=True), put_off(1.0)),
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
        (decided(PAUSE, 1), TryAgain(0.0, burns_attempt=False)),
        (decided(PAUSE, 99), TryAgain(0.0, burns_attempt=False)),
        (decided(PAUSE, 1, retry_after=600.0), TryAgain(0.0, burns_attempt=False)),
    ],
)
def test_the_policy_decides_as_its_table_says(decision: Decision, expected: Decision) -> None:
    assert decision == expected


waits = st.none() | st.floats(0, 7 * 86_400)
chances = st.floats(0, 1, exclude_max=True)
statuses = st.sampled_from([None, 429, 500])
codes = st.sampled_from(["code", NO_CHANNEL, SCHEMA_MISMATCH])
failures = st.builds(
    failure, st.sampled_from(ErrorClass), waits, statuses, codes, wait_asked=st.booleans()
)
standings = st.builds(stands, st.integers(1, 10), st.integers(1, 4), st.integers(10, 300))


@given(failures, standings, chances)
def test_a_wait_is_never_negative_nor_shorter_than_the_endpoint_asked(
    failed: Failure, standing: Standing, chance: float
) -> None:
    decision = decide(failed, standing, POLICY, Dice(chance))
    if isinstance(decision, TryAgain):
        assert decision.delay_seconds >= 0
        asked = failed.retry_after_seconds
        if asked is not None and not decision.divert and failed.error_class is not PAUSE:
            assert asked <= decision.delay_seconds <= max(asked * 1.1, 30 * 1.1)


@given(failures, st.integers(1, 4), st.integers(4, 300), chances)
def test_a_job_ends_after_its_attempts_unless_it_was_put_off(
    failed: Failure, endpoints: int, calls: int, chance: float
) -> None:
    standing = stands(POLICY.max_attempts, endpoints, calls)
    decision = decide(failed, standing, POLICY, Dice(chance))
    assert decision == GiveUp() or (
        isinstance(decision, TryAgain) and not decision.burns_attempt and _puts_off(failed)
    )


@given(failures, st.integers(1, 10), chances)
def test_with_one_endpoint_nothing_is_diverted(
    failed: Failure, attempts: int, chance: float
) -> None:
    decision = decide(failed, stands(attempts, 1), POLICY, Dice(chance))
    assert decision == GiveUp() or (isinstance(decision, TryAgain) and not decision.divert)


@given(failures, standings, chances)
def test_an_attempt_is_spared_only_by_who_put_the_job_off(
    failed: Failure, standing: Standing, chance: float
) -> None:
    decision = decide(failed, standing, POLICY, Dice(chance))
    if isinstance(decision, TryAgain) and not decision.burns_attempt:
        assert _puts_off(failed)
        least = min(1.0, failed.retry_after_seconds or 1.0)
        assert decision.delay_seconds >= (0.0 if failed.error_class is PAUSE else least)


def _puts_off(failed: Failure) -> bool:
    """Whether the failure says when, rather than that, a call can succeed."""
    if failed.error_class is RETRY:
        return failed.status == 429 or failed.wait_asked
    return failed.error_class is PAUSE


@given(failures, chances)
def test_only_pauses_and_rate_limits_can_go_on_for_ever(failed: Failure, chance: float) -> None:
    attempts = calls = 0
    for _ in range(MOST_CALLS_SPARED + POLICY.max_attempts + 1):
        attempts, calls = attempts + 1, calls + 1
        decision = decide(failed, Standing(attempts, calls, 2), POLICY, Dice(chance))
        if not isinstance(decision, TryAgain):
            return
        attempts -= not decision.burns_attempt
    assert failed.is_rate_limit or failed.error_class is PAUSE


# --- answers that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [SCHEMA_MISMATCH, NOT_JSON])
def test_an_answer_that_does_not_fit_is_asked_for_again_as_often_as_is_left(code: str) -> None:
    unfit = failure(PERMANENT, code=code)
    standing = Standing(attempts=4, calls=4, endpoints=2, reasks=1)
    again = TryAgain(0.0, burns_attempt=False, reask=True)
    assert decide(unfit, standing, POLICY, Dice(0.0)) == again
    assert decide(unfit, stands(), POLICY, Dice(0.0)) == GiveUp()


def test_no_other_failure_is_asked_for_again() -> None:
    standing = Standing(attempts=1, calls=1, endpoints=2, reasks=3)
    assert decide(failure(PERMANENT), standing, POLICY, Dice(0.0)) == GiveUp()


# --- calls that may have been billed --------------------------------------------------------------


@given(failures, standings, chances)
def test_what_may_have_been_billed_is_not_called_again_where_that_is_forbidden(
    failed: Failure, standing: Standing, chance: float
) -> None:
    policy = replace(POLICY, unknown_outcome=UnknownOutcome.FAIL)
    decision = decide(replace(failed, maybe_billed=True), standing, policy, Dice(chance))
    assert isinstance(decision, GiveUp)
    assert "may have been billed" in decision.reason
    known = decide(failed, standing, policy, Dice(chance))
    assert known == decide(failed, standing, POLICY, Dice(chance))


@given(failures, standings, chances)
def test_what_may_have_been_billed_is_held_where_it_would_be_called_again(
    failed: Failure, standing: Standing, chance: float
) -> None:
    policy = replace(POLICY, unknown_outcome=UnknownOutcome.HOLD)
    unknown = replace(failed, maybe_billed=True)
    otherwise = decide(unknown, standing, POLICY, Dice(chance))
    held = decide(unknown, standing, policy, Dice(chance))
    assert held == (Hold() if isinstance(otherwise, TryAgain) else otherwise)
    known = decide(failed, standing, policy, Dice(chance))
    assert known == decide(failed, standing, POLICY, Dice(chance))


@pytest.mark.parametrize(
    ("own", "decision"),
    [
        (UnknownOutcome.RETRY, TryAgain),
        (UnknownOutcome.HOLD, Hold),
        (UnknownOutcome.FAIL, GiveUp),
        (None, Hold),
    ],
)
def test_a_jobs_own_policy_for_unknown_outcomes_goes_first(
    own: UnknownOutcome | None, decision: type
) -> None:
    policy = replace(POLICY, unknown_outcome=UnknownOutcome.HOLD)
    standing = Standing(attempts=1, calls=1, endpoints=1, unknown_outcome=own)
    unknown = replace(failure(RETRY), maybe_billed=True)
    assert isinstance(decide(unknown, standing, policy, Dice(0.0)), decision)


def test_the_policy_is_what_the_settings_say() -> None:
    settings = Settings.load(
        max_attempts=3, backoff_base_seconds=0.1, backoff_cap_seconds=2,
        unknown_outcome="fail",
    )  # fmt: skip
    assert RetryPolicy.of(settings) == RetryPolicy(3, 0.1, 2.0, UnknownOutcome.FAIL)
    assert RetryPolicy.of(Settings.load()) == RetryPolicy()


@given(st.integers(1, 10_000), chances)
def test_backoff_doubles_up_to_its_cap_and_loses_at_most_a_quarter(
    attempts: int, chance: float
) -> None:
    full = min(2.0 ** min(attempts - 1, 60), 8.0)
    assert full * 0.75 <= backoff(attempts, POLICY, Dice(chance)) <= full


def test_many_failures_at_once_do_not_come_back_at_once() -> None:
    rng = random.Random(7)  # noqa: S311  # spreads waits, guards nothing
    told = failure(RETRY, 60.0)
    delays = [decide(told, stands(), POLICY, rng) for _ in range(200)]
    seconds = [one.delay_seconds for one in delays if isinstance(one, TryAgain)]
    assert max(seconds) - min(seconds) > 5.0


def test_each_wait_is_longer_than_the_one_before_whatever_the_dice_say() -> None:
    for attempts in range(1, 4):
        assert backoff(attempts + 1, POLICY, Dice(1.0)) >= 1.5 * backoff(
            attempts, POLICY, Dice(0.0)
        )
