"""The shapes of replies on the wire: read strictly and fast, then again with patience.

Called by `worker.upstream.answers` for whole replies and by `worker.upstream.streams` for the
events of a stream; both have the same shape, with `message` in the one and `delta` in the other.
It judges nothing: what a reply means is its callers' business.
"""

import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from worker.jobs.outcomes import ToolCall, Usage
from worker.upstream.texts import storable

NULL: Final = msgspec.Raw(b"null")
MOST_TOKENS: Final = 1_000_000_000
"""No call is that large: a greater count is an upstream's slip that must not break a column."""


class Function(msgspec.Struct):
    """A called function, or a fragment of it."""

    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    """A tool call, or a fragment of it."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Message(msgspec.Struct):
    """What a choice says, or a piece of it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None

    @property
    def thought(self) -> str | None:
        """The reasoning under whichever name it came. Both names carry the same: never joined."""
        return self.reasoning_content or self.reasoning


class Choice(msgspec.Struct):
    """One choice of a reply."""

    index: int | None = None
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NULL


class Details(msgspec.Struct):
    """The parts of a token count that have a price of their own."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Tokens(msgspec.Struct):
    """Token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None


class Reply(msgspec.Struct):
    """A reply, or one event of a stream. `usage` stays JSON: a stream repeats it needlessly."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = NULL
    error: Any = None


_REPLY: Final = msgspec.json.Decoder(Reply)
_TOKENS: Final = msgspec.json.Decoder(Tokens)


def read_reply(raw: bytes) -> Reply | None:
    """Read a reply of any shape; None if it is not a JSON object.

    A field of the wrong type counts as missing, bytes that are not UTF-8 become U+FFFD.
    """
    try:
        return _REPLY.decode(raw)
    except (ValueError, RecursionError):
        return _patient(raw)


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """Read the token counts of a reply; None if it has none."""
    if bytes(raw) == b"null":
        return None
    try:
        tokens = _TOKENS.decode(raw)
    except (ValueError, RecursionError):
        value = _loads(bytes(raw))
        if not isinstance(value, dict):
            return None
        tokens = _loose_tokens(value)
    prompt, completion = _tokens(tokens.prompt_tokens), _tokens(tokens.completion_tokens)
    return Usage(
        prompt,
        _tokens((tokens.prompt_tokens_details or Details()).cached_tokens),
        completion,
        _tokens((tokens.completion_tokens_details or Details()).reasoning_tokens),
        _tokens(tokens.total_tokens) or prompt + completion,
    )


def _tokens(count: int | None) -> int:
    """Keep a count to what can be counted and stored."""
    return min(max(count or 0, 0), MOST_TOKENS)


def tool_calls(calls: Iterable[Call]) -> tuple[ToolCall, ...]:
    """Turn the calls of one choice, in order, into values."""
    return tuple(_tool_call(index, call) for index, call in enumerate(calls))


def _tool_call(index: int, call: Call) -> ToolCall:
    function = call.function or Function()
    arguments = storable(function.arguments or "")
    return ToolCall(
        index,
        storable(call.id or ""),
        storable(function.name or ""),
        arguments,
        _is_json(arguments),
    )


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _patient(raw: bytes) -> Reply | None:
    """Read what the strict reader refused: odd types, bad bytes, halves of surrogate pairs."""
    value = _loads(raw)
    return _loose_reply(value) if isinstance(value, dict) else None


def _loads(raw: bytes) -> Any:
    """Read JSON as generously as Python can; None if it is none."""
    try:
        return json.loads(raw.decode("utf-8-sig", errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _loose_reply(value: dict[str, Any]) -> Reply:
    return Reply(
        _text(value.get("id")),
        _text(value.get("model")),
        _count(value.get("created")),
        [_loose_choice(choice) for choice in _objects(value.get("choices"))],
        _raw(value.get("usage")),
        value.get("error"),
    )


def _loose_choice(value: dict[str, Any]) -> Choice:
    return Choice(
        _count(value.get("index")),
        _loose_message(value.get("message")),
        _loose_message(value.get("delta")),
        _text(value.get("finish_reason")),
        _raw(value.get("logprobs")),
    )


def _loose_message(value: Any) -> Message | None:
    if not isinstance(value, dict):
        return None
    calls = value.get("tool_calls")
    return Message(
        _spoken(value.get("content")),
        _spoken(value.get("reasoning_content")),
        _spoken(value.get("reasoning")),
        _spoken(value.get("refusal")),
        [_loose_call(call) for call in _objects(calls)] if isinstance(calls, list) else None,
    )


def _loose_call(value: dict[str, Any]) -> Call:
    function = value.get("function")
    if not isinstance(function, dict):
        return Call(_count(value.get("index")), _text(value.get("id")))
    arguments = function.get("arguments")
    if isinstance(arguments, dict | list):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return Call(
        _count(value.get("index")),
        _text(value.get("id")),
        Function(_text(function.get("name")), _text(arguments)),
    )


def _loose_tokens(value: dict[str, Any]) -> Tokens:
    return Tokens(
        _count(value.get("prompt_tokens")),
        _count(value.get("completion_tokens")),
        _count(value.get("total_tokens")),
        _loose_details(value.get("prompt_tokens_details")),
        _loose_details(value.get("completion_tokens_details")),
    )


def _loose_details(value: Any) -> Details | None:
    if not isinstance(value, dict):
        return None
    return Details(_count(value.get("cached_tokens")), _count(value.get("reasoning_tokens")))


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value)


def _spoken(value: Any) -> str | None:
    """Give a text, or the texts of a list of parts as one."""
    if isinstance(value, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in value)
        return "".join(text for text in texts if isinstance(text, str))
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    """Give a count, whether it came as 12, 12.0 or "12"."""
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return None


def _raw(value: Any) -> msgspec.Raw:
    """Write a value as JSON again; null if JSON has no way to say it (NaN)."""
    try:
        # msgspec cannot write lone surrogates; this escapes them
        return msgspec.Raw(json.dumps(value, allow_nan=False).encode())
    except (ValueError, RecursionError):
        return NULL
