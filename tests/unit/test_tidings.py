import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from worker.execution.routes import Assignment
from worker.execution.tidings import (
    BAD_NEWS_SECONDS,
    GATHER_SECONDS,
    Tidings,
    left_well,
    report,
)
from worker.gate.gate import Report, Target
from worker.gate.meter import Told
from worker.jobs.outcomes import (
    NO_CHANNEL,
    RATE_LIMITED,
    Answer,
    ErrorClass,
    Exchange,
    Failure,
    Outcome,
    Phase,
    RateLimits,
    Usage,
)
from worker.store.claims import Claimed

TARGET = Target("https://first.example", "0123", "gpt-5.1")
ANSWER = Answer("{}", usage=Usage(total_tokens=18))


def assignment(attempts: int = 1) -> Assignment:
    claimed = Claimed(
        "job-1", 1, None, "lane-1", "{}", "gpt-5.1",
        multimodal=False, stream=False, attempts=attempts, diverts=0,
    )  # fmt: skip
    return Assignment(claimed, TARGET, endpoints=2)


def failure(error_class: ErrorClass, status: int | None, code: str = "x", **more: Any) -> Failure:
    return Failure(error_class, code, "no", Phase.ANSWERING, status=status, **more)


def reported(outcome: Outcome, limits: RateLimits | None = None, attempts: int = 1) -> Report:
    return report(assignment(attempts), Exchange(outcome, TARGET.endpoint, 0.5, limits), 7.0)


RETRY, DIVERT, PERMANENT, PAUSE = (
    ErrorClass.RETRY,
    ErrorClass.DIVERT,
    ErrorClass.PERMANENT,
    ErrorClass.PAUSE,
)
ASKED: dict[str, Any] = {"retry_after_seconds": 9.0, "wait_asked": True}
DOCUMENTED: dict[str, Any] = {"retry_after_seconds": 30.0}

OUTCOMES: dict[str, tuple[Outcome, bool | None, Told]] = {
    "an answer": (ANSWER, True, Told(proof=True, tokens=18)),
    "an answer without usage": (Answer("{}"), True, Told(proof=True)),
    "a 429 with a wait": (
        failure(RETRY, 429, RATE_LIMITED, **ASKED),
        True,
        Told(refused=True, wait_seconds=9.0),
    ),
    "a 429 whose wait is the documents'": (
        failure(RETRY, 429, RATE_LIMITED, **DOCUMENTED),
        True,
        Told(refused=True, wait_seconds=30.0),
    ),
    "a 429 without a wait": (failure(RETRY, 429, RATE_LIMITED), True, Told(refused=True)),
    "a limit told in a stream": (failure(RETRY, 200, RATE_LIMITED), True, Told(refused=True)),
    "a 429 of another meaning": (failure(PAUSE, 429, "insufficient_quota"), True, Told()),
    "a 503 with a wait": (failure(RETRY, 503, **ASKED), False, Told()),
    "a 503 whose wait is the documents'": (failure(RETRY, 503, **DOCUMENTED), False, Told()),
    "a 503 without a wait": (failure(RETRY, 503), False, Told()),
    "a 402": (failure(PAUSE, 402, "insufficient_quota", **ASKED), True, Told()),
    "a 400": (failure(PERMANENT, 400, "invalid_request_error"), True, Told(proof=True)),
    "a 408": (failure(RETRY, 408), True, Told()),
    "a failure that was billed": (
        failure(RETRY, 200, "content_not_json", usage=Usage(total_tokens=5)),
        True,
        Told(tokens=5),
    ),
    "a lost connection": (failure(RETRY, None, "connection_lost"), False, Told()),
    "an endpoint that is not there": (failure(DIVERT, None, "connection_refused"), False, Told()),
    "a diverting reply": (failure(DIVERT, 404), False, Told()),
    "no channel": (failure(DIVERT, 503, NO_CHANNEL), None, Told()),
    "a fault of our own": (failure(RETRY, None, "internal_error"), None, Told()),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_outcome_tells_what_it_knows_and_no_more(name: str) -> None:
    outcome, well, told = OUTCOMES[name]
    assert reported(outcome) == Report(TARGET, 7.0, fresh=True, well=well, told=told)
    assert left_well(outcome) is well


@pytest.mark.parametrize("outcome", [ANSWER, failure(RETRY, 429, RATE_LIMITED)])
def test_what_headers_say_of_limits_is_passed_on(outcome: Outcome) -> None:
    told = reported(outcome, RateLimits(600, 599, 1.0, 100_000, 99_000, 2.0)).told
    limits = (
        told.limit_requests, told.remaining_requests, told.limit_tokens, told.remaining_tokens,
    )  # fmt: skip
    assert limits == (600, 599, 100_000, 99_000)


def test_only_the_first_try_of_a_job_is_fresh() -> None:
    assert reported(ANSWER, attempts=1).fresh
    assert not reported(ANSWER, attempts=2).fresh


def test_tidings_are_handed_over_together_and_in_order() -> None:
    handed: list[Sequence[Report]] = []
    reports = [reported(ANSWER, attempts=n + 1) for n in range(3)]

    async def tell() -> None:
        all_told = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hand_over(some: Sequence[Report]) -> None:
            handed.append(some)
            loop.call_soon_threadsafe(all_told.set)

        tidings = Tidings(hand_over, pool)
        for batch in (reports, reports[:1]):
            all_told.clear()
            for one in batch:
                tidings.add(one)
            await asyncio.wait_for(all_told.wait(), 30)

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(tell())
    assert handed == [reports, reports[:1]]


def test_bad_news_is_told_at_once_with_what_was_gathered_before_it() -> None:
    handed: list[Sequence[Report]] = []
    good, bad = reported(ANSWER), reported(failure(RETRY, 429, RATE_LIMITED))

    async def tell() -> float:
        told = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hand_over(some: Sequence[Report]) -> None:
            handed.append(some)
            loop.call_soon_threadsafe(told.set)

        tidings = Tidings(hand_over, pool)
        waits: list[float] = []
        call_at = loop.call_at

        def noted(when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            waits.append(when - loop.time())
            return call_at(when, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_at", noted)
            tidings.add(good)
            tidings.add(bad)
            tidings.add(bad)
        await asyncio.wait_for(told.wait(), 30)
        return waits[-1]

    with ThreadPoolExecutor(1) as pool:
        wait = asyncio.run(tell())
    assert handed == [[good, bad, bad]]
    assert wait <= BAD_NEWS_SECONDS < GATHER_SECONDS
