"""What is shown of batches, jobs and attempts: read-only snapshots, as the store read them.

Field names are the columns'. The Python API hands these out; the commands print them.
"""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from worker.jobs.outcomes import ToolCall
from worker.jobs.states import BATCH_ENDS, TERMINAL, AttemptState, BatchState, State


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and its exact counts at one moment.

    Token counts include those of calls that were retried. `redrives`: how often its failed jobs
    were run again. `halted_at`: since when a person has had it paused.
    """

    id: str
    name: str
    queue: str
    priority: int
    state: BatchState
    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    redrives: int
    created_at: datetime
    in_progress_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = None
    halted_at: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", BatchState(self.state))

    @property
    def done(self) -> int:
        """Jobs in a terminal state."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def is_finished(self) -> bool:
        """Whether no work is owed any more."""
        return self.state in BATCH_ENDS


@dataclass(frozen=True, slots=True)
class Job:
    """A job, and its answer or error. `response` is the raw JSON text the upstream sent.

    `is_emptied`: a purge has removed what was said, in the request and in the answer.
    """

    id: str
    batch_id: str | None
    line: int
    custom_id: str
    model: str
    state: State
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None
    expires_at: datetime | None
    status: int | None
    request_id: str | None
    finish_reason: str | None
    content: str | None
    reasoning_content: str | None
    refusal: str | None
    response: str | None
    error_class: str | None
    error_code: str | None
    error_message: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    is_emptied: bool = False
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", State(self.state))
        object.__setattr__(self, "is_emptied", bool(self.is_emptied))

    @property
    def is_finished(self) -> bool:
        """Whether the job is in a terminal state."""
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a job, as the ledger has it. `seconds` is what it took; None: not answered."""

    number: int
    state: AttemptState
    endpoint: str
    prepared_at: datetime
    answered_at: datetime | None
    seconds: float | None
    first_token_seconds: float | None
    status: int | None
    request_id: str | None
    error_class: str | None
    error_code: str | None
    error_message: str | None
    maybe_billed: bool
    prompt_tokens: int | None
    completion_tokens: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", AttemptState(self.state))


def as_json(view: Any) -> dict[str, Any]:
    """Return a view as plain values for JSON; times in ISO 8601."""
    out: dict[str, Any] = {}
    for item in fields(view):
        value = getattr(view, item.name)
        if isinstance(value, datetime):
            value = value.isoformat()
        elif isinstance(value, tuple):
            value = [as_json(one) for one in value]
        out[item.name] = value
    return out
