"""Reading: what the commands, the Python API and the reports show. Changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, not_, or_, select, update

from worker.jobs.outcomes import ToolCall
from worker.jobs.states import BatchState, State
from worker.jobs.views import Attempt, Batch, Job
from worker.models import attempt, batch, job, tool_call
from worker.store.clock import from_now, later

_BATCH_COLUMNS: Final = (
    batch.c.id,
    batch.c.name,
    batch.c.queue,
    batch.c.priority,
    batch.c.state,
    batch.c.total,
    batch.c.succeeded,
    batch.c.failed,
    batch.c.cancelled,
    batch.c.expired,
    batch.c.prompt_tokens,
    batch.c.cached_tokens,
    batch.c.completion_tokens,
    batch.c.reasoning_tokens,
    batch.c.redrives,
    batch.c.created_at,
    batch.c.in_progress_at,
    batch.c.finished_at,
    batch.c.expires_at,
    batch.c.halted_at,
)

_JOB_COLUMNS: Final = (
    *(
        job.c[name]
        for name in (
            "id",
            "batch_id",
            "line",
            "custom_id",
            "model",
            "state",
            "attempts",
            "created_at",
            "started_at",
            "finished_at",
            "due_at",
            "expires_at",
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
            "prompt_tokens",
            "cached_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "total_tokens",
        )
    ),
    (job.c.body == "").label("is_emptied"),
)

# Of a batch that is being submitted, or was given up half-way, or is being removed.
_HIDDEN: Final = job.c.batch_id.in_(
    select(batch.c.id).where(batch.c.state == BatchState.VALIDATING)
)
_SHOWN: Final = or_(job.c.batch_id.is_(None), not_(_HIDDEN))


def get_batch(connection: Connection, batch_id: str) -> Batch | None:
    """Read one batch; None if there is none, or it is still being submitted."""
    rows = _batches(connection, select(*_BATCH_COLUMNS).where(batch.c.id == batch_id))
    return rows[0] if rows else None


def list_batches(connection: Connection, limit: int) -> list[Batch]:
    """List the newest batches first."""
    return _batches(connection, select(*_BATCH_COLUMNS).order_by(batch.c.id.desc()).limit(limit))


def _batches(connection: Connection, statement: Select[Any]) -> list[Batch]:
    shown = statement.where(batch.c.state != BatchState.VALIDATING)
    return [Batch(*row) for row in connection.execute(shown)]


def get_job(connection: Connection, job_id: str) -> Job | None:
    """Read one job with everything known of it but its ledger."""
    chosen = select(*_JOB_COLUMNS).where(job.c.id == job_id, _SHOWN)
    row = connection.execute(chosen).one_or_none()
    if row is None:
        return None
    return _job(row, _tool_calls(connection, [job_id]))


def get_state(connection: Connection, job_id: str) -> State | None:
    """Read a job's state alone."""
    found = connection.scalar(select(job.c.state).where(job.c.id == job_id))
    return None if found is None else State(found)


def list_attempts(connection: Connection, job_id: str) -> list[Attempt]:
    """Read a job's ledger, in the order of its calls."""
    columns = (
        attempt.c.fence.label("number"),
        attempt.c.state,
        attempt.c.endpoint,
        attempt.c.prepared_at,
        attempt.c.answered_at,
        attempt.c.seconds,
        attempt.c.first_token_seconds,
        attempt.c.status,
        attempt.c.request_id,
        attempt.c.error_class,
        attempt.c.error_code,
        attempt.c.error_message,
        attempt.c.maybe_billed,
        attempt.c.prompt_tokens,
        attempt.c.completion_tokens,
    )
    rows = connection.execute(
        select(*columns).where(attempt.c.job_id == job_id).order_by(attempt.c.fence)
    )
    return [Attempt(**row._mapping) for row in rows]  # noqa: SLF001  # its name


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list; None: all."""

    batch_id: str | None = None
    state: State | None = None


def list_jobs(connection: Connection, which: JobFilter, limit: int) -> list[Job]:
    """List the newest jobs first, without their contents' tool calls."""
    statement = select(*_JOB_COLUMNS).order_by(job.c.id.desc()).limit(limit)
    if which.batch_id is not None:
        statement = statement.where(job.c.batch_id == which.batch_id)
    else:
        statement = statement.where(_SHOWN)
    if which.state is not None:
        statement = statement.where(job.c.state == which.state)
    return [Job(*row) for row in connection.execute(statement)]


def page_of_jobs(connection: Connection, batch_id: str, after: str, size: int = 500) -> list[Job]:
    """Read the jobs of a batch that follow a job id, in the order of the input."""
    rows = connection.execute(
        select(*_JOB_COLUMNS)
        .where(job.c.batch_id == batch_id, job.c.id > after)
        .order_by(job.c.id)
        .limit(size)
    ).all()
    calls = _tool_calls(connection, [row.id for row in rows])
    return [_job(row, calls) for row in rows]


def _job(row: Row[Any], calls: Mapping[str, Sequence[ToolCall]]) -> Job:
    return Job(**row._mapping, tool_calls=tuple(calls.get(row.id, ())))  # noqa: SLF001  # its name


def _tool_calls(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[ToolCall]]:
    rows = connection.execute(
        select(tool_call)
        .where(tool_call.c.job_id.in_(job_ids))
        .order_by(tool_call.c.job_id, tool_call.c.position)
    )
    found: dict[str, list[ToolCall]] = {}
    for job_id, *call in rows:
        found.setdefault(job_id, []).append(ToolCall(*call))
    return found


def count_states(connection: Connection, batch_id: str | None = None) -> dict[State, int]:
    """Count jobs by state, of one batch or of all that are shown."""
    statement = select(job.c.state, func.count()).group_by(job.c.state)
    statement = statement.where(_SHOWN if batch_id is None else job.c.batch_id == batch_id)
    return {State(state): count for state, count in connection.execute(statement)}


def count_unknown(connection: Connection, batch_id: str | None = None) -> int:
    """Count the calls that brought no answer and may have been billed: nobody knows."""
    statement = select(func.count()).where(attempt.c.maybe_billed)
    if batch_id is not None:
        statement = statement.join_from(attempt, job, attempt.c.job_id == job.c.id).where(
            job.c.batch_id == batch_id
        )
    return connection.scalar(statement) or 0


def count_held(connection: Connection, batch_id: str | None = None) -> int:
    """Count the jobs that wait for a person's decision."""
    statement = select(func.count()).where(job.c.state == State.HELD)
    if batch_id is not None:
        statement = statement.where(job.c.batch_id == batch_id)
    return connection.scalar(statement) or 0


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """How many jobs of a batch have met one error, and the newest one's words."""

    state: State
    code: str
    count: int
    message: str


def failure_groups(connection: Connection, batch_id: str, limit: int = 10) -> list[FailureGroup]:
    """Group a batch's failed, held and waiting jobs by their error, most frequent first."""
    count = func.count()
    rows: Sequence[Row[Any]] = connection.execute(
        select(
            job.c.state,
            job.c.error_code,
            count.label("jobs"),
            func.max(job.c.error_message).label("words"),
        )
        .where(
            job.c.batch_id == batch_id,
            job.c.state.in_([State.FAILED, State.HELD, State.WAITING]),
            job.c.error_code.is_not(None),
        )
        .group_by(job.c.state, job.c.error_code)
        .order_by(count.desc())
        .limit(limit)
    ).all()
    return [
        FailureGroup(State(row.state), row.error_code, row.jobs, row.words or "") for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Report:
    """A batch whose turn it is to be reported. `is_first`: nobody has since it was (re)driven."""

    batch: Batch
    is_first: bool


def take_reports(
    connection: Connection, every_seconds: float, after_end_seconds: float
) -> list[Report]:
    """Take the batches that are due to be reported and that nobody else takes: now it is ours.

    An open one is due when its last report is that old; one that has ended, until it was reported
    once that long after its end. A report that is yet to come is from before the clock went back.
    """
    owed = or_(
        batch.c.finished_at.is_(None),
        batch.c.reported_at.is_(None),
        batch.c.reported_at <= later(batch.c.finished_at, after_end_seconds),
    )
    rows = connection.execute(
        select(*_BATCH_COLUMNS, batch.c.reported_at.is_(None))
        .where(
            batch.c.state != BatchState.VALIDATING,
            or_(
                batch.c.reported_at.is_(None),
                batch.c.reported_at <= from_now(-every_seconds),
                batch.c.reported_at > from_now(every_seconds),
            ),
            owed,
        )
        .order_by(batch.c.id)
        .with_for_update(skip_locked=True)
    ).all()
    if rows:
        connection.execute(
            update(batch)
            .where(batch.c.id.in_([row.id for row in rows]))
            .values(reported_at=from_now())
        )
    return [Report(Batch(*row[:-1]), bool(row[-1])) for row in rows]
