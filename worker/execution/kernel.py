"""The execution of one claimed job, in named stages: call → decide → record → report.

The claim comes before (`worker.execution.shift`). One claim is one call: whatever has to wait
waits in SQL, as `due_at`, and is claimed again. Belongs to the event loop.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, assert_never

import structlog

from worker.execution.recorder import Recorder
from worker.jobs.outcomes import Answer, ErrorClass, Exchange, Failure, Phase
from worker.jobs.states import State
from worker.retry import GiveUp, RetryPolicy, TryAgain, decide
from worker.settings import Settings
from worker.store.claims import SINGLES, Claimed
from worker.store.records import Record
from worker.upstream.client import Upstream

log = structlog.get_logger(__name__)

SEEN_SENT_SECONDS: Final = 1.0
"""A call older than this is noted as sent; a younger one that is lost counts as maybe sent too."""


class Endpoints:
    """Which endpoint a claimed job's call goes to."""

    def __init__(self, settings: Settings) -> None:
        self._text = settings.text_endpoints
        self._multimodal = settings.multimodal_endpoints

    def of(self, claimed: Claimed) -> tuple[str, ...]:
        """The endpoints for the job's kind, in order of preference."""
        return self._multimodal if claimed.multimodal else self._text

    def choose(self, claimed: Claimed) -> str:
        """The endpoint of the next call: each diversion so far moved it on by one."""
        endpoints = self.of(claimed)
        return endpoints[claimed.diverts % len(endpoints)]


@dataclass(slots=True)
class Call:
    """A call in flight."""

    claimed: Claimed
    started: float
    task: "asyncio.Task[Record | None]"
    noted_sent: bool = False


@dataclass(slots=True)
class Board:
    """The calls this process has in flight, by job id."""

    calls: dict[str, Call] = field(default_factory=dict)
    by_lane: Counter[str] = field(default_factory=Counter)

    def add(self, call: Call) -> None:
        """Put a call on the board."""
        self.calls[call.claimed.id] = call
        self.by_lane[call.claimed.batch_id or SINGLES] += 1

    def remove(self, claimed: Claimed) -> None:
        """Take it off."""
        if self.calls.pop(claimed.id, None) is not None:
            self.by_lane[claimed.batch_id or SINGLES] -= 1

    def newly_sent(self) -> list[tuple[str, int]]:
        """List (job id, fence) of the calls in flight for a while that were not listed before."""
        long_ago = time.monotonic() - SEEN_SENT_SECONDS
        fresh = [c for c in self.calls.values() if not c.noted_sent and c.started < long_ago]
        for call in fresh:
            call.noted_sent = True
        return [(call.claimed.id, call.claimed.fence) for call in fresh]


class Kernel:
    """Executes claimed jobs."""

    def __init__(
        self, upstream: Upstream, recorder: Recorder, policy: RetryPolicy, endpoints: Endpoints
    ) -> None:
        self._upstream = upstream
        self._recorder = recorder
        self._policy = policy
        self._endpoints = endpoints
        self._rng = random.Random()  # noqa: S311  # spreads retries, guards nothing
        self._releases: dict[str, Callable[[], None]] = {}
        self.board = Board()

    def start(self, claimed: Claimed, release: Callable[[], None]) -> "asyncio.Task[Record | None]":
        """Begin the execution of a job; the task's result is what was recorded.

        `release` is called when the call is over: its slot need not wait for the record.
        """
        task = asyncio.get_running_loop().create_task(self._execute(claimed))
        self.board.add(Call(claimed, time.monotonic(), task))
        # Not in a `finally` of the task: one that is cancelled before it began runs none.
        task.add_done_callback(lambda _: self._call_over(claimed))
        self._releases[claimed.id] = release
        return task

    def _call_over(self, claimed: Claimed) -> None:
        release = self._releases.pop(claimed.id, None)
        if release is not None:
            self.board.remove(claimed)
            release()

    async def _execute(self, claimed: Claimed) -> Record | None:
        """Run the stages; None where the job was no longer ours when its outcome came."""
        exchange = await self._call(claimed)
        self._call_over(claimed)
        record = self._decide(claimed, exchange)
        taken = await self._recorder.record(record)
        self._report(record, taken=taken)
        return record if taken else None

    async def _call(self, claimed: Claimed) -> Exchange:
        endpoint = self._endpoints.choose(claimed)
        try:
            return await self._upstream.call(
                endpoint, claimed.body, stream=claimed.stream, idempotency_key=claimed.id
            )
        except Exception as error:
            # A fault of ours must cost this one job a retry, not the process its shift.
            log.exception("call_crashed", job_id=claimed.id)
            return Exchange(_crashed(error), endpoint, 0.0)

    def _decide(self, claimed: Claimed, exchange: Exchange) -> Record:
        outcome = exchange.outcome
        head = (claimed.id, claimed.fence, claimed.batch_id, exchange)
        if isinstance(outcome, Answer):
            return Record(*head, State.SUCCEEDED)
        endpoints = len(self._endpoints.of(claimed))
        decision = decide(outcome, claimed.attempts, self._policy, endpoints, self._rng)
        match decision:
            case GiveUp():
                return Record(*head, State.FAILED)
            case TryAgain():
                return Record(
                    *head,
                    State.WAITING,
                    delay_seconds=decision.delay_seconds,
                    diverts=claimed.diverts + decision.divert,
                    burns_attempt=decision.burns_attempt,
                )
            case _:
                assert_never(decision)

    def _report(self, record: Record, *, taken: bool) -> None:
        outcome = record.exchange.outcome
        if not taken:
            log.warning("answer_came_late", job_id=record.job_id, fence=record.fence)
        elif isinstance(outcome, Failure):
            log.info(
                "call_failed",
                job_id=record.job_id,
                batch_id=record.batch_id,
                endpoint=record.exchange.endpoint,
                code=outcome.code,
                status=outcome.status,
                state=record.state,
                maybe_billed=outcome.maybe_billed,
            )


def _crashed(error: Exception) -> Failure:
    return Failure(
        ErrorClass.RETRY,
        "internal_error",
        f"chatqueue itself failed during the call: {type(error).__name__}",
        Phase.SENT,
        maybe_billed=True,
    )
