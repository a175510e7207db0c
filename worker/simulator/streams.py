"""Cuts a completion into the events of a stream (SSE), in the form the reference describes.

Called by `worker.simulator.deliveries`. Pure. The deltas joined again are the completion.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from worker.simulator.answers import AnswerMessage, Choice, Completion, ToolCall, Usage

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_KEEP_ALIVE_EACH: Final = 32
_ARGUMENT_CHARS: Final = 12
_WORD: Final = re.compile(r"\s*\S+|\s+")
_ENCODER: Final = msgspec.json.Encoder()


class ChunkChoice(Struct, gc=False):
    """What one chunk adds to a choice."""

    index: int
    delta: dict[str, Any]
    finish_reason: str | None = None


class Chunk(Struct, gc=False):
    """A chat.completion.chunk object."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType = UNSET


def events(completion: Completion, *, chunks: int, include_usage: bool) -> list[bytes]:
    """Give all events, the first with the role, the last `[DONE]`; comments come in between.

    `chunks` is the number of pieces of each content (0: word by word).
    """
    whole = [
        _event(completion, [part])
        for choice in completion.choices
        for part in _parts(choice, chunks)
    ]
    for place in range(1, len(whole) + 1, _KEEP_ALIVE_EACH):
        whole[place - 1] += KEEP_ALIVE
    if include_usage:
        whole.append(_event(completion, [], completion.usage))
    whole.append(DONE)
    return whole


def data(payload: bytes) -> bytes:
    """Frame one event."""
    return b"data: " + payload + b"\n\n"


def _event(
    completion: Completion, choices: list[ChunkChoice], usage: Usage | UnsetType = UNSET
) -> bytes:
    chunk = Chunk(completion.id, completion.created, completion.model, choices, usage=usage)
    return data(_ENCODER.encode(chunk))


def _parts(choice: Choice, chunks: int) -> Iterator[ChunkChoice]:
    for delta in _deltas(choice.message, chunks):
        yield ChunkChoice(choice.index, delta)
    yield ChunkChoice(choice.index, {}, choice.finish_reason)


def _deltas(message: AnswerMessage, chunks: int) -> Iterator[dict[str, Any]]:
    yield {"role": message.role, "content": None if message.content is None else ""}
    for piece in _WORD.findall(message.reasoning_content or ""):
        yield {"reasoning_content": piece}
    for piece in _pieces(message.content or "", chunks):
        yield {"content": piece}
    for index, call in enumerate(message.tool_calls or ()):
        yield from _fragments(index, call)


def _pieces(content: str, chunks: int) -> list[str]:
    if not chunks:
        return _WORD.findall(content)
    count = min(chunks, len(content))
    ends = [len(content) * (place + 1) // count for place in range(count)]
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _fragments(index: int, call: ToolCall) -> Iterator[dict[str, Any]]:
    """Give the id, the type and the name first, then the arguments in pieces."""
    function = {"name": call.function.name, "arguments": ""}
    first = {"index": index, "id": call.id, "type": call.type, "function": function}
    yield {"tool_calls": [first]}
    text = call.function.arguments
    for start in range(0, len(text), _ARGUMENT_CHARS):
        piece = text[start : start + _ARGUMENT_CHARS]
        yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
