"""What one call came to: an `Answer` or a `Failure`. Pure values, a closed union.

`worker.upstream` makes them, `worker.retry` decides on them, `worker.store` records them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NO_CHANNEL: Final = "no_available_channel"
"""The code of every failure for want of a channel or of the model: to be tried once more here."""

RATE_LIMITED: Final = "rate_limit_exceeded"
"""The code of every failure that says no more than that calls come too fast."""

SCHEMA_MISMATCH: Final = "schema_mismatch"
"""The code of an answer that is JSON, but not of the form that was asked for."""

NOT_JSON: Final = "content_not_json"
"""The code of an answer that was to be JSON and is none."""


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
    `retry_after_seconds` is the wait that is due: with `wait_asked` the server named it in this
    very reply, else its documentation does. `body` is what it sent, if anything; `partial` the text
    of a stream that was cut, or of an answer that does not fit. `maybe_billed`: the request may
    have run, and nobody can say; what is billed for certain has `usage` and not this mark.
    """

    error_class: ErrorClass
    code: str
    message: str
    phase: Phase
    maybe_billed: bool = False
    status: int | None = None
    request_id: str | None = None
    retry_after_seconds: float | None = None
    wait_asked: bool = False
    body: str | None = None
    partial: str | None = None
    usage: Usage | None = None

    @property
    def is_rate_limit(self) -> bool:
        """Whether nothing was wrong with the request but its moment."""
        return self.error_class is ErrorClass.RETRY and (
            self.status == 429 or self.code == RATE_LIMITED
        )

    @property
    def is_mismatch(self) -> bool:
        """Whether a whole answer came, and is not what the request's response_format asks for."""
        return self.code in {SCHEMA_MISMATCH, NOT_JSON}


Outcome = Answer | Failure


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The upstream's own account of its limits. None: not said, or said to be unknown (-1)."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_seconds: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call made: its outcome, where it went and how long it took (seconds, monotonic).

    `limits` is what the reply's headers said of limits, if anything.
    """

    outcome: Outcome
    endpoint: str
    seconds: float
    limits: RateLimits | None = None
