"""What was used: calls and tokens from the ledger, by day, model, batch or endpoint.

One statement over all of the ledger; on PostgreSQL it blocks nobody, on SQLite no reader.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, select

from worker.jobs.states import AttemptState
from worker.models import attempt, job
from worker.store.clock import utc_day


class By(StrEnum):
    """What usage is told apart by."""

    DAY = "day"
    MODEL = "model"
    BATCH = "batch"
    ENDPOINT = "endpoint"


SINGLES: Final = "(single jobs)"
"""Stands for the batch of jobs that belong to none."""


@dataclass(frozen=True, slots=True)
class Used:
    """What one model took on one day (UTC), of one `key`: a day, model, batch or endpoint.

    `calls` are all that were prepared; of these `answered` brought an answer, `failed` a failure,
    `unknown` were made and told nothing; the rest is under way. `retries` are calls after a job's
    first. Tokens are those of all calls; `vain_…` those of calls that brought no answer.
    """

    key: str
    model: str
    day: date
    calls: int
    answered: int
    failed: int
    unknown: int
    retries: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    vain_prompt_tokens: int
    vain_cached_tokens: int
    vain_completion_tokens: int


_KEYS: Final[Mapping[By, ColumnElement[Any]]] = {
    By.DAY: utc_day(attempt.c.prepared_at),
    By.MODEL: job.c.model,
    By.BATCH: func.coalesce(job.c.batch_id, literal(SINGLES)),
    By.ENDPOINT: attempt.c.endpoint,
}
_EARLIER: Final = attempt.alias("earlier")
_IS_RETRY: Final = and_(
    attempt.c.fence > 1,  # else there is none to be looked for
    select(_EARLIER.c.fence)
    .where(_EARLIER.c.job_id == attempt.c.job_id, _EARLIER.c.fence < attempt.c.fence)
    .correlate(attempt)
    .exists(),
)
_IS_FAILURE: Final = attempt.c.error_class.is_not(None)


def _count_where(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _tokens(name: str) -> ColumnElement[int]:
    return func.coalesce(func.sum(attempt.c[f"{name}_tokens"]), 0)


def _vain(name: str) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((_IS_FAILURE, attempt.c[f"{name}_tokens"]), else_=0)), 0)


def usage(
    connection: Connection,
    by: By,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Used]:
    """Sum what the ledger has of calls prepared between two moments, by key, model and day."""
    is_answered = attempt.c.state == AttemptState.ANSWERED
    key, day = _KEYS[by], utc_day(attempt.c.prepared_at)
    within = [attempt.c.prepared_at >= since] if since else []
    within += [attempt.c.prepared_at < until] if until else []
    statement = (
        select(
            key.label("key"),
            job.c.model.label("model"),
            day.label("day"),
            func.count(),
            _count_where(and_(is_answered, ~_IS_FAILURE)),
            _count_where(and_(is_answered, _IS_FAILURE)),
            _count_where(attempt.c.state == AttemptState.UNKNOWN),
            _count_where(_IS_RETRY),
            *map(_tokens, ("prompt", "cached", "completion", "reasoning")),
            *map(_vain, ("prompt", "cached", "completion")),
        )
        .select_from(attempt.join(job, job.c.id == attempt.c.job_id))
        .where(*within)
        .group_by("key", "model", "day")
        .order_by("key", "model", "day")
    )
    rows = connection.execute(statement)
    return [Used(r[0], r[1], date.fromisoformat(r[2]), *map(int, r[3:])) for r in rows]
