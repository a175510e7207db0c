"""The execution of one claimed job, in named stages: call → decide → record → report.

The claim comes before (`worker.execution.shift`). One claim is one call: whatever has to wait
waits in SQL, as `due_at`, and is claimed again. Belongs to the event loop.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

import structlog

from worker.execution.board import Board, Call
from worker.execution.recorder import Recorder
from worker.execution.routes import Assignment
from worker.execution.tidings import Tidings, report
from worker.jobs.outcomes import Answer, ErrorClass, Exchange, Failure, Phase
from worker.jobs.shaping import Streaming, as_stream, needs_stream, with_followup
from worker.jobs.states import State
from worker.jobs.structured import mismatch, reask_messages
from worker.retry import GiveUp, Hold, RetryPolicy, Standing, TryAgain, decide
from worker.settings import UnknownOutcome
from worker.store.claims import Claimed
from worker.store.pauses import Refusal
from worker.store.records import Record
from worker.upstream.client import Upstream

log = structlog.get_logger(__name__)


class Kernel:
    """Executes claimed jobs."""

    def __init__(
        self,
        upstream: Upstream,
        recorder: Recorder,
        policy: RetryPolicy,
        tidings: Tidings,
        streaming: Streaming,
    ) -> None:
        self._upstream = upstream
        self._recorder = recorder
        self._policy = policy
        self._tidings = tidings
        self._streaming = streaming
        self._rng = random.Random()  # noqa: S311  # spreads retries, guards nothing
        self.board = Board()

    def start(
        self, assignment: Assignment, release: Callable[[], None]
    ) -> "asyncio.Task[Record | None]":
        """Begin the execution of a job; the task's result is what was recorded.

        `release` is called when the task is over: a slot that came free before its record was
        committed would let a kill leave more calls of unknown outcome than there are slots.
        """
        task = asyncio.get_running_loop().create_task(self._execute(assignment))
        self.board.add(Call(assignment, time.monotonic(), task))
        # Not in a `finally` of the task: one that is cancelled before it began runs none.
        task.add_done_callback(lambda _: self._over(assignment, release))
        return task

    def _over(self, assignment: Assignment, release: Callable[[], None]) -> None:
        self.board.remove(assignment)
        release()

    async def _execute(self, assignment: Assignment) -> Record | None:
        """Run the stages; None where the job was no longer ours when its outcome came."""
        began = time.monotonic()
        exchange = await self._call(assignment)
        self._tidings.add(report(assignment, exchange, began))
        self.board.remove(assignment)  # no longer to be cut: its answer is on its way to the books
        record = self._decide(assignment, exchange)
        taken = await self._recorder.record(record)
        self._report(record, taken=taken)
        return record if taken else None

    async def _call(self, assignment: Assignment) -> Exchange:
        claimed, endpoint = assignment.claimed, assignment.target.endpoint
        body, stream = claimed.body, claimed.stream
        try:
            if claimed.followup is not None:
                body = with_followup(body, claimed.followup)
            if not stream and needs_stream(body, claimed.model, self._streaming):
                body, stream = as_stream(body), True
            exchange = await self._upstream.call(
                endpoint,
                body,
                stream=stream,
                idempotency_key=_idempotency_key(claimed),
                patient=not claimed.stream,
            )
            return _held_against(claimed.body, exchange)
        except Exception as error:
            # A fault of ours must cost this one job a retry, not the process its shift.
            log.exception("call_crashed", job_id=claimed.id)
            return Exchange(_crashed(error), endpoint, 0.0)

    def _decide(self, assignment: Assignment, exchange: Exchange) -> Record:
        claimed, outcome = assignment.claimed, exchange.outcome
        head = (claimed.id, claimed.fence, claimed.batch_id, exchange)
        if isinstance(outcome, Answer):
            return Record(*head, State.SUCCEEDED, proves=_proved(assignment))
        decision = decide(outcome, _standing(assignment), self._policy, self._rng)
        match decision:
            case Hold():
                return Record(
                    *head,
                    State.HELD,
                    diverts=claimed.diverts,
                    reasks=claimed.reasks,
                    followup=claimed.followup,
                    proves=_proved(assignment),
                )
            case GiveUp():
                told = _because(decision.reason, exchange)
                return Record(*head[:3], told, State.FAILED, proves=_proved(assignment))
            case TryAgain():
                return Record(
                    *head,
                    State.WAITING,
                    delay_seconds=decision.delay_seconds,
                    diverts=claimed.diverts + decision.divert,
                    burns_attempt=decision.burns_attempt,
                    refusal=_refusal(assignment, outcome),
                    reasks=claimed.reasks - decision.reask,
                    followup=_followup(outcome) if decision.reask else claimed.followup,
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


def _standing(assignment: Assignment) -> Standing:
    claimed = assignment.claimed
    return Standing(
        attempts=claimed.attempts,
        calls=claimed.fence,
        endpoints=assignment.endpoints,
        reasks=claimed.reasks,
        unknown_outcome=UnknownOutcome(claimed.unknown_outcome)
        if claimed.unknown_outcome
        else None,
    )


def _idempotency_key(claimed: Claimed) -> str:
    """Name what is asked: the same in every try, and another where the job asks something else."""
    key = f"{claimed.id}-v{claimed.revision}" if claimed.revision else claimed.id
    return key if claimed.followup is None else f"{key}-r{claimed.reasks}"


def _followup(failure: Failure) -> str:
    """Ask again for an answer of the right form. It takes the place of what was asked before."""
    return reask_messages(failure.partial or "", failure.message)


def _proved(assignment: Assignment) -> str | None:
    """Return the paused key that this call was the probe of, now that it was not refused."""
    return assignment.target.key if assignment.is_probe else None


def _refusal(assignment: Assignment, failure: Failure) -> Refusal | None:
    """Say what pauses the key of the call, if this does."""
    if failure.error_class is not ErrorClass.PAUSE:
        return None
    return Refusal(
        assignment.target.key,
        failure.code,
        failure.message,
        assignment.target.endpoint,
        failure.retry_after_seconds,
    )


def _held_against(body: str, exchange: Exchange) -> Exchange:
    """Put a failure in the place of an answer that is not what its request asks for."""
    outcome = exchange.outcome
    failure = mismatch(body, outcome) if isinstance(outcome, Answer) else None
    return exchange if failure is None else replace(exchange, outcome=failure)


def _because(reason: str, exchange: Exchange) -> Exchange:
    """Say in its failure what ended a job, where that was not the failure itself."""
    if not reason or isinstance(exchange.outcome, Answer):
        return exchange
    message = f"{reason}; the last call: {exchange.outcome.message}"
    return replace(exchange, outcome=replace(exchange.outcome, message=message))


def _crashed(error: Exception) -> Failure:
    return Failure(
        ErrorClass.RETRY,
        "internal_error",
        f"chatqueue itself failed during the call: {type(error).__name__}",
        Phase.SENT,
        maybe_billed=True,
    )
