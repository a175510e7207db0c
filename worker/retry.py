"""What to do after a failed call: pure policy, given the clock's and the dice's results.

Called by `worker.execution`; it never sleeps, reads no clock and touches nothing.
"""

import random
from dataclasses import dataclass

from worker.jobs.outcomes import ErrorClass, Failure


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try. Times in seconds.

    `max_attempts` counts calls, the first included. A pause burns none.
    """

    max_attempts: int = 6
    backoff_base_seconds: float = 0.5
    backoff_cap_seconds: float = 8.0
    pause_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job has failed."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Call again after `delay_seconds`; at the next endpoint if `divert`.

    `burns_attempt` is False where the call could not have succeeded, whatever the job.
    """

    delay_seconds: float
    divert: bool = False
    burns_attempt: bool = True


Decision = GiveUp | TryAgain


def decide(
    failure: Failure, attempts: int, policy: RetryPolicy, endpoints: int, rng: random.Random
) -> Decision:
    """Decide after the `attempts`-th call (from 1) of a job with that many `endpoints`."""
    match failure.error_class:
        case ErrorClass.PERMANENT:
            return GiveUp()
        case ErrorClass.PAUSE:
            wait = failure.retry_after_seconds or policy.pause_seconds
            return TryAgain(_spread(wait, rng), burns_attempt=False)
        case _ if attempts >= policy.max_attempts:
            return GiveUp()
        case ErrorClass.DIVERT:
            # Every endpoint was tried in this round: now wait before the next.
            went_round = attempts % endpoints == 0
            wait = failure.retry_after_seconds or 0.0
            delay = max(wait, backoff(attempts, policy, rng)) if went_round else 0.0
            return TryAgain(delay, divert=endpoints > 1)
        case ErrorClass.RETRY:
            return _retry(failure, attempts, policy, endpoints, rng)


def _retry(
    failure: Failure, attempts: int, policy: RetryPolicy, endpoints: int, rng: random.Random
) -> TryAgain:
    # A rate limit is the key's, whichever endpoint said it; anything else another may do better.
    if endpoints > 1 and attempts > 1 and failure.status != 429:
        return TryAgain(backoff(attempts, policy, rng), divert=True)
    if failure.retry_after_seconds is not None:
        return TryAgain(_spread(failure.retry_after_seconds, rng))
    return TryAgain(backoff(attempts, policy, rng))


def backoff(attempts: int, policy: RetryPolicy, rng: random.Random) -> float:
    """Return min(base * 2^(attempts-1), cap) seconds, less up to a half of it at random."""
    ceiling = min(
        policy.backoff_base_seconds * 2.0 ** min(attempts - 1, 30), policy.backoff_cap_seconds
    )
    return ceiling * (1.0 - 0.5 * rng.random())


def _spread(seconds: float, rng: random.Random) -> float:
    """Never earlier than asked, and not everybody at once: up to a tenth later."""
    return seconds * (1.0 + 0.1 * rng.random())
