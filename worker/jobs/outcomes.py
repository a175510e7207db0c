"""What one call came to: an `Answer` or a `Failure`. Pure values, a closed union.

`worker.upstream` makes them, `worker.retry` decides on them, `worker.store` records them.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class ErrorClass(StrEnum):
    """What a failed call asks for.

    `retry`: the same endpoint after a wait. `divert`: the next endpoint. `permanent`: give up.
    `pause`: nothing that uses this key can succeed; wait without burning an attempt.
    """

    RETRY = "retry"
    DIVERT = "divert"
    PERMANENT = "permanent"
    PAUSE = "pause"


class Phase(StrEnum):
    """How far a call came before it failed: what decides whether it may have been billed."""

    CONNECTING = "connecting"  # nothing left this machine
    SENT = "sent"  # the request left, no answer began
    ANSWERING = "answering"  # the answer had begun


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the upstream counted them. Reasoning is part of completion, cached of prompt."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call the model asks for. `arguments` is kept as sent, valid JSON or not."""

    index: int
    call_id: str
    name: str
    arguments: str
    arguments_valid: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `body` is the JSON text of the chat.completion object, as received.

    `content`, `reasoning_content`, `refusal`, `finish_reason` and `tool_calls` are those of the
    first choice; further choices are in `body`. A stream is assembled to the same form.
    """

    body: str
    status: int = 200
    request_id: str | None = None
    model: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without a whole answer.

    `code` is a short stable name (`rate_limit_exceeded`, `connection_refused`, `stream_cut`, …).
    `retry_after_seconds` is the wait the server asked for. `body` is what it sent, if anything;
    `partial` the text of a stream that was cut. `maybe_billed`: the request may have run.
    """

    error_class: ErrorClass
    code: str
    message: str
    phase: Phase
    maybe_billed: bool = False
    status: int | None = None
    request_id: str | None = None
    retry_after_seconds: float | None = None
    body: str | None = None
    partial: str | None = None
    usage: Usage | None = None


Outcome = Answer | Failure


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call made: its outcome, where it went and how long it took (seconds, monotonic)."""

    outcome: Outcome
    endpoint: str
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
