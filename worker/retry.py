"""What to do after a failed call: pure policy, given the clock's and the dice's results.

Called by `worker.execution`; it never sleeps, reads no clock and touches nothing.
"""

import random
from dataclasses import dataclass
from typing import Final, Self

from worker.jobs.outcomes import NO_CHANNEL, ErrorClass, Failure
from worker.settings import Settings, UnknownOutcome

MOST_CALLS_SPARED: Final = 100
"""After so many calls for one job even a wait that a server asks for burns an attempt.

A server that says "later" for ever must not keep a job for ever. Rate limits are left out: they
end.
"""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try. Times in seconds.

    `max_attempts` counts calls, the first included; a pause, and a wait that the server asked for,
    burn none. `unknown_outcome` is for jobs that have no policy of their own.
    """

    max_attempts: int = 6
    backoff_base_seconds: float = 0.5
    backoff_cap_seconds: float = 8.0
    unknown_outcome: UnknownOutcome = UnknownOutcome.RETRY

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the policy from the settings."""
        return cls(
            max_attempts=settings.max_attempts,
            backoff_base_seconds=settings.backoff_base_seconds,
            backoff_cap_seconds=settings.backoff_cap_seconds,
            unknown_outcome=settings.unknown_outcome,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands after a call.

    `attempts` are the calls that count, `calls` all of them; the one just made is in both.
    `reasks`: how often an answer of the wrong form may still be asked for again. `unknown_outcome`:
    the job's own policy, where it has one.
    """

    attempts: int
    calls: int
    endpoints: int
    reasks: int = 0
    unknown_outcome: UnknownOutcome | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job has failed. `reason`: what ended it, where that is not the failure itself."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """The call may have been billed: a person decides whether it is made again."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Call again after `delay_seconds`; at the next endpoint if `divert`.

    `burns_attempt` is False where the call could not have succeeded, whatever the job. `reask`: not
    the same call, but one that shows the model its answer and what is wrong with it.
    """

    delay_seconds: float
    divert: bool = False
    burns_attempt: bool = True
    reask: bool = False


Decision = GiveUp | Hold | TryAgain


def decide(
    failure: Failure, standing: Standing, policy: RetryPolicy, rng: random.Random
) -> Decision:
    """Decide after a call of a job that stands so."""
    unknown = (standing.unknown_outcome or policy.unknown_outcome) if failure.maybe_billed else None
    if unknown is UnknownOutcome.FAIL:
        return GiveUp("not tried again, because the call may have been billed")
    decision = _next_try(failure, standing, policy, rng)
    if unknown is UnknownOutcome.HOLD and isinstance(decision, TryAgain):
        return Hold()
    return decision


def _next_try(
    failure: Failure, standing: Standing, policy: RetryPolicy, rng: random.Random
) -> Decision:
    attempts = standing.attempts
    match failure.error_class:
        case ErrorClass.PERMANENT:
            may_ask = failure.is_mismatch and standing.reasks > 0
            return TryAgain(0.0, burns_attempt=False, reask=True) if may_ask else GiveUp()
        case ErrorClass.PAUSE:
            return TryAgain(0.0, burns_attempt=False)  # what holds it is the pause of its key
        case ErrorClass.RETRY if _is_spared(failure, standing):
            return _wait_as_asked(failure, standing, policy, rng)
        case _ if attempts >= policy.max_attempts:
            return GiveUp()
        case ErrorClass.DIVERT:
            # Every endpoint was tried in this round: now wait before the next.
            went_round = attempts % standing.endpoints == 0
            wait = failure.retry_after_seconds or 0.0
            delay = max(wait, backoff(attempts, policy, rng)) if went_round else 0.0
            return TryAgain(delay, divert=standing.endpoints > 1)
        case ErrorClass.RETRY:
            return _retry(failure, standing, policy, rng)


def _is_spared(failure: Failure, standing: Standing) -> bool:
    """Whether the job need not pay for this with an attempt: the server put it off."""
    asked = failure.wait_asked and standing.calls < MOST_CALLS_SPARED
    return failure.is_rate_limit or asked


def _wait_as_asked(
    failure: Failure, standing: Standing, policy: RetryPolicy, rng: random.Random
) -> TryAgain:
    asked = failure.retry_after_seconds
    wait = backoff(standing.calls, policy, rng) if asked is None else _spread(asked, rng)
    return TryAgain(
        # No attempts end these tries, so they must not spin where a server asks for no wait at all.
        max(wait, policy.backoff_base_seconds),
        divert=_is_diverted(failure, standing.calls, standing.endpoints),
        burns_attempt=False,
    )


def _retry(
    failure: Failure, standing: Standing, policy: RetryPolicy, rng: random.Random
) -> TryAgain:
    # The endpoint that it goes to next has asked for no wait.
    if _is_diverted(failure, standing.attempts, standing.endpoints):
        return TryAgain(backoff(standing.attempts, policy, rng), divert=True)
    if failure.retry_after_seconds is not None:
        return TryAgain(_spread(failure.retry_after_seconds, rng))
    return TryAgain(backoff(standing.attempts, policy, rng))


def _is_diverted(failure: Failure, tries: int, endpoints: int) -> bool:
    """Whether the next try, after so many, goes to the next endpoint.

    The first one stays. For want of a channel every other one does: each endpoint is tried twice. A
    rate limit is the key's, whichever endpoint said it.
    """
    if endpoints == 1 or failure.is_rate_limit:
        return False
    return tries % 2 == 0 if failure.code == NO_CHANNEL else tries > 1


def backoff(attempts: int, policy: RetryPolicy, rng: random.Random) -> float:
    """Return min(base * 2^(attempts-1), cap) seconds, less up to a quarter of it at random.

    Not more, so that each wait is longer than the one before, whatever the dice say.
    """
    ceiling = min(
        policy.backoff_base_seconds * 2.0 ** min(attempts - 1, 30), policy.backoff_cap_seconds
    )
    return ceiling * (1.0 - 0.25 * rng.random())


def _spread(seconds: float, rng: random.Random) -> float:
    """Never earlier than asked, and not everybody at once: up to a tenth later."""
    return seconds * (1.0 + 0.1 * rng.random())
