"""What a call tells the gate, and how it gets there: gathered on the event loop, told off it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from worker.execution.routes import Assignment
from worker.gate.gate import Report
from worker.gate.meter import Told
from worker.jobs.outcomes import NO_CHANNEL, ErrorClass, Exchange, Failure, Outcome, RateLimits

GATHER_SECONDS: Final = 0.1
"""How long tidings gather: the gate is told of many calls at once."""

BAD_NEWS_SECONDS: Final = 0.02
"""How long those gather that ask for caution."""

_NOTHING: Final = RateLimits()


def report(assignment: Assignment, exchange: Exchange, began: float) -> Report:
    """Say what an exchange that began then tells of its endpoint and of its limits. Pure."""
    outcome = exchange.outcome
    failure = outcome if isinstance(outcome, Failure) else None
    refused = failure is not None and failure.is_rate_limit
    limits = exchange.limits or _NOTHING
    told = Told(
        refused=refused,
        proof=failure is None or failure.error_class is ErrorClass.PERMANENT,
        wait_seconds=failure.retry_after_seconds if failure and refused else None,
        tokens=outcome.usage.total_tokens if outcome.usage else None,
        limit_requests=limits.limit_requests,
        remaining_requests=limits.remaining_requests,
        limit_tokens=limits.limit_tokens,
        remaining_tokens=limits.remaining_tokens,
    )
    fresh = assignment.claimed.attempts == 1
    return Report(assignment.target, began, fresh, left_well(outcome), told)


def left_well(outcome: Outcome) -> bool | None:
    """Tell whether a call left its endpoint well; None where it says nothing of the endpoint."""
    if not isinstance(outcome, Failure):
        return True
    if outcome.code in {NO_CHANNEL, "internal_error", "endpoint_not_configured"}:
        return None
    if outcome.error_class is ErrorClass.DIVERT:
        return False
    if outcome.error_class is ErrorClass.RETRY and (outcome.status or 500) >= 500:
        return False
    return None if outcome.status is None else True


class Tidings:
    """Gathers reports on the event loop, and hands them over in a thread."""

    def __init__(self, hand_over: Callable[[Sequence[Report]], None], threads: Executor) -> None:
        self._hand_over = hand_over
        self._threads = threads
        self._gathered: list[Report] = []
        self._flushing: asyncio.TimerHandle | None = None

    def add(self, one: Report) -> None:
        """Take a report; it is told a little later."""
        self._gathered.append(one)
        loop = asyncio.get_running_loop()
        is_bad = one.told.refused or one.well is False
        moment = loop.time() + (BAD_NEWS_SECONDS if is_bad else GATHER_SECONDS)
        if self._flushing is not None:
            if self._flushing.when() <= moment:
                return
            self._flushing.cancel()
        self._flushing = loop.call_at(moment, self._flush)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._flushing = None
        self._threads.submit(self._hand_over, gathered)
