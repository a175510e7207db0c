"""Recording what calls came to: many outcomes in one transaction, each guarded by its fence.

Called by the recorder of `worker.execution`. A record whose job has moved on (taken over, or
cancelled) changes only the ledger: money spent is never silent.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Table,
    Update,
    and_,
    bindparam,
    case,
    insert,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from worker.jobs.outcomes import Answer, Exchange, Failure, Usage
from worker.jobs.states import TERMINAL, AttemptState, BatchState, State
from worker.models import attempt, batch, job, tool_call
from worker.store import pauses
from worker.store.clock import from_now
from worker.store.manyfold import Given, ManyfoldUpdate
from worker.store.pauses import Refusal

MESSAGE_LIMIT: Final = 2_000


@dataclass(frozen=True, slots=True)
class Record:
    """What one claimed job's call came to, and the state that was decided for the job.

    `delay_seconds`, `diverts`, `burns_attempt`, `reasks` (those left) and `followup` (messages for
    the next call) matter where `state` is waiting or held. `refusal` pauses
    the key of the call; `proves` is the key whose pause it ends, by not being refused.
    """

    job_id: str
    fence: int
    batch_id: str | None
    exchange: Exchange
    state: State
    delay_seconds: float = 0.0
    diverts: int = 0
    burns_attempt: bool = True
    reasks: int = 0
    followup: str | None = None
    refusal: Refusal | None = None
    proves: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a transaction of records changed: the jobs that took theirs, the batches now done."""

    job_ids: frozenset[str]
    finished_batches: tuple[str, ...]


_USAGE: Final = ("prompt", "cached", "completion", "reasoning", "total")
_TOTALLED: Final = _USAGE[:-1]

OUTCOME_COLUMNS: Final = (
    "status",
    "request_id",
    "finish_reason",
    "content",
    "reasoning_content",
    "refusal",
    "response",
    "error_class",
    "error_code",
    "error_message",
    *(f"{name}_tokens" for name in _USAGE),
)
"""The columns of a job that say how its last call ended."""

_KEY: Final[dict[str, TypeEngine[Any]]] = {"b_id": job.c.id.type, "b_fence": job.c.fence.type}


def _types(table: Table, *names: str) -> dict[str, TypeEngine[Any]]:
    """Name what a row of an update has: the key of a call, and these columns."""
    return _KEY | {name: table.c[name].type for name in names}


def _held_job(given: Given) -> ColumnElement[bool]:
    """Find the job that still is what the call was made for."""
    return and_(
        job.c.id == given("b_id"),
        job.c.fence == given("b_fence"),
        job.c.state == State.RUNNING,
    )


def _finish(given: Given) -> Update:
    told = {name: given(name) for name in ("state", *OUTCOME_COLUMNS)}
    return (
        update(job).where(_held_job(given)).values(worker_id=None, finished_at=from_now(), **told)
    )


_KEPT: Final = ("diverts", "reasks", "followup", "error_class", "error_code", "error_message")


def _put_off(given: Given) -> Update:
    return (
        update(job)
        .where(_held_job(given))
        .values(
            state=given("state"),
            worker_id=None,
            due_at=from_now(given("delay_seconds")),
            attempts=job.c.attempts - given("unburnt"),
            **{name: given(name) for name in _KEPT},
        )
    )


_TOLD: Final = (
    "seconds",
    "first_token_seconds",
    "status",
    "request_id",
    "error_class",
    "error_code",
    "error_message",
    "maybe_billed",
    *(f"{name}_tokens" for name in _USAGE),
)


def _answer(given: Given) -> Update:
    told = {name: given(name) for name in _TOLD}
    return (
        update(attempt)
        .where(attempt.c.job_id == given("b_id"), attempt.c.fence == given("b_fence"))
        .values(state=AttemptState.ANSWERED, answered_at=from_now(), **told)
    )


_FINISH: Final = ManyfoldUpdate(_finish, _types(job, "state", *OUTCOME_COLUMNS))
_PUT_OFF: Final = ManyfoldUpdate(
    _put_off,
    _types(job, "state", *_KEPT) | {"delay_seconds": Float(), "unburnt": job.c.attempts.type},
)
_ANSWER: Final = ManyfoldUpdate(_answer, _types(attempt, *_TOLD))

_IS_DONE: Final = (
    batch.c.succeeded + batch.c.failed + batch.c.cancelled + batch.c.expired >= batch.c.total
)
_COUNT: Final = (
    update(batch)
    .where(batch.c.id == bindparam("b_id"))
    .values(
        {
            name: batch.c[name] + bindparam(f"more_{name}")
            for name in (
                "succeeded",
                "failed",
                "cancelled",
                "expired",
                *(f"{name}_tokens" for name in _TOTALLED),
            )
        }
    )
    .returning(_IS_DONE)
)


def record(connection: Connection, records: Sequence[Record]) -> Recorded:
    """Record outcomes. A stale one (by its fence) touches only the ledger."""
    if not records:
        return Recorded(frozenset(), ())
    held = _held(connection, records)
    live = [r for r in records if held.get(r.job_id) == r.fence]
    finished = [r for r in live if r.state in TERMINAL]
    put_off = [r for r in live if r.state in {State.WAITING, State.HELD}]
    if finished:
        _FINISH.execute(connection, [_finish_row(r) for r in finished])
        _write_tool_calls(connection, finished)
    if put_off:
        _PUT_OFF.execute(connection, [_put_off_row(r) for r in put_off])
    _ANSWER.execute(connection, [_attempt_row(r) for r in records])
    _settle_pauses(connection, records)
    done = _count(connection, live)
    return Recorded(frozenset(r.job_id for r in live), done)


def _settle_pauses(connection: Connection, records: Sequence[Record]) -> None:
    """Begin and end pauses of keys. Of many refusals of one key, the first says it all."""
    refused = {r.refusal.key: r for r in reversed(records) if r.refusal is not None}
    for _, one in sorted(
        refused.items(), key=lambda item: item[0]
    ):  # in one order, or two recorders could deadlock
        if one.refusal is not None:
            pauses.begin(connection, one.refusal, one.job_id, one.fence)
    for one in records:
        if one.proves is not None:
            pauses.end_if_proved(connection, one.proves, one.job_id, one.fence)


_HELD: Final = (
    select(job.c.id, job.c.fence)
    .where(job.c.id.in_(bindparam("ids", expanding=True)), job.c.state == State.RUNNING)
    .order_by(job.c.id)
    .with_for_update()
)


def _held(connection: Connection, records: Sequence[Record]) -> dict[str, int]:
    """Lock these jobs, always in the same order, and read the fences of those still running."""
    rows = connection.execute(_HELD, {"ids": [r.job_id for r in records]})
    return {row.id: row.fence for row in rows}


def _count(connection: Connection, live: Iterable[Record]) -> tuple[str, ...]:
    """Add to the batches' counters; return the batches that are finished by it."""
    counters: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in live:
        if one.batch_id is None:
            continue
        counter = counters[one.batch_id]
        if one.state in TERMINAL:
            counter[one.state] += 1
        _add_usage(counter, one.exchange.outcome.usage)
    rows: list[dict[str, Any]] = [
        {"b_id": batch_id, **{f"more_{name}": counter[name] for name in _COUNTED}}
        for batch_id, counter in sorted(counters.items())
    ]
    done = [row["b_id"] for row in rows if connection.scalar(_COUNT, row)]
    return finish_batches(connection, done) if done else ()


_COUNTED: Final = (
    State.SUCCEEDED,
    State.FAILED,
    State.CANCELLED,
    State.EXPIRED,
    *(f"{name}_tokens" for name in _TOTALLED),
)


def _add_usage(counter: Counter[str], usage: Usage | None) -> None:
    if usage is not None:
        for name in _TOTALLED:
            counter[f"{name}_tokens"] += getattr(usage, f"{name}_tokens")


_FINISH_BATCHES: Final = (
    update(batch)
    .where(
        batch.c.id.in_(bindparam("ids", expanding=True)),
        batch.c.state.in_([BatchState.IN_PROGRESS, BatchState.CANCELLING]),
        _IS_DONE,
    )
    .values(
        state=case(
            (batch.c.state == BatchState.CANCELLING, BatchState.CANCELLED),
            (and_(batch.c.expires_at <= from_now(), batch.c.expired > 0), BatchState.EXPIRED),
            else_=BatchState.COMPLETED,
        ),
        finished_at=from_now(),
    )
    .returning(batch.c.id)
)


def finish_batches(connection: Connection, batch_ids: Sequence[str]) -> tuple[str, ...]:
    """Close those of these batches whose every job is done; return the ones closed by this."""
    return tuple(connection.scalars(_FINISH_BATCHES, {"ids": batch_ids}))


def _usage_row(usage: Usage | None) -> dict[str, int | None]:
    return {
        f"{name}_tokens": None if usage is None else getattr(usage, f"{name}_tokens")
        for name in _USAGE
    }


def _finish_row(one: Record) -> dict[str, Any]:
    outcome = one.exchange.outcome
    row = {
        "b_id": one.job_id,
        "b_fence": one.fence,
        "state": one.state,
        "status": outcome.status,
        "request_id": outcome.request_id,
        **_usage_row(outcome.usage),
        **_error_row(outcome),
    }
    if isinstance(outcome, Answer):
        return row | {
            "finish_reason": outcome.finish_reason,
            "content": outcome.content,
            "reasoning_content": outcome.reasoning_content,
            "refusal": outcome.refusal,
            "response": outcome.body,
        }
    return row | {
        "finish_reason": None,
        "content": outcome.partial,
        "reasoning_content": None,
        "refusal": None,
        "response": outcome.body,
    }


def _error_row(outcome: Answer | Failure) -> dict[str, Any]:
    if isinstance(outcome, Answer):
        return {"error_class": None, "error_code": None, "error_message": None}
    return {
        "error_class": outcome.error_class,
        "error_code": outcome.code,
        "error_message": outcome.message[:MESSAGE_LIMIT],
    }


def _put_off_row(one: Record) -> dict[str, Any]:
    return {
        "b_id": one.job_id,
        "b_fence": one.fence,
        "state": one.state,
        "delay_seconds": one.delay_seconds,
        "diverts": one.diverts,
        "unburnt": 0 if one.burns_attempt else 1,
        "reasks": one.reasks,
        "followup": one.followup,
        **_error_row(one.exchange.outcome),
    }


def _attempt_row(one: Record) -> dict[str, Any]:
    outcome = one.exchange.outcome
    answer = outcome if isinstance(outcome, Answer) else None
    failure = outcome if isinstance(outcome, Failure) else None
    return {
        "b_id": one.job_id,
        "b_fence": one.fence,
        "seconds": one.exchange.seconds,
        "first_token_seconds": answer.first_token_seconds if answer else None,
        "status": outcome.status,
        "request_id": outcome.request_id,
        "maybe_billed": failure is not None and failure.maybe_billed,
        **_usage_row(outcome.usage),
        **_error_row(outcome),
    }


def _write_tool_calls(connection: Connection, finished: Iterable[Record]) -> None:
    rows = [
        {
            "job_id": one.job_id,
            "position": call.index,
            "call_id": call.call_id,
            "name": call.name,
            "arguments": call.arguments,
            "arguments_valid": call.arguments_valid,
        }
        for one in finished
        if isinstance(one.exchange.outcome, Answer)
        for call in one.exchange.outcome.tool_calls
    ]
    if rows:
        connection.execute(insert(tool_call), rows)


def mark_sent(connection: Connection, claims: Sequence[tuple[str, int]]) -> None:
    """Note in the ledger that these calls, by (job id, fence), are seen in flight."""
    connection.execute(
        update(attempt)
        .where(
            attempt.c.job_id == bindparam("b_id"),
            attempt.c.fence == bindparam("b_fence"),
            attempt.c.state == AttemptState.PREPARED,
        )
        .values(state=AttemptState.SENT),
        [{"b_id": job_id, "b_fence": fence} for job_id, fence in claims],
    )
