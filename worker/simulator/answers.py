"""What the model answers: from a valid request to a `Completion`, the chat.completion object.

Called by `worker.simulator.service`; `streams` cuts the same completion into chunks. Pure: model,
messages and seed decide every word, so that a stream says what the plain answer says, and so does
a second try. Only `id` and `created` are given from outside, as they differ between calls.
"""

from dataclasses import dataclass
from random import Random
from typing import Any, Final

import msgspec
import orjson
from msgspec import UNSET, Struct, UnsetType

from worker.simulator.bodies import ChatRequest, Message, Tool
from worker.simulator.fates import mix
from worker.simulator.instances import instance


class CalledFunction(Struct, gc=False):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, gc=False):
    """One call the model asks for."""

    id: str
    function: CalledFunction
    type: str = "function"


class AnswerMessage(Struct, gc=False):
    """The message of a choice."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Choice(Struct, gc=False):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    finish_reason: str


class PromptDetails(Struct, gc=False):
    """Of the prompt's tokens: those from the cache."""

    cached_tokens: int


class CompletionDetails(Struct, gc=False):
    """Of the answer's tokens: those spent on reasoning."""

    reasoning_tokens: int


class Usage(Struct, gc=False):
    """The tokens of a call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Completion(Struct, gc=False):
    """A chat.completion object; its JSON is the body of a plain answer."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: str = "chat.completion"


@dataclass(frozen=True, slots=True)
class Manner:
    """How answers are made. `ending`: cut them in half and say this finish_reason."""

    seed: int = 0
    answer_bytes: int = 0
    ending: str | None = None


_CHARS_PER_TOKEN: Final = 4
_IMAGE_TOKENS: Final = 765
_LOW_IMAGE_TOKENS: Final = 85
_CACHED_FROM: Final = 1024  # shorter prompts are never cached, longer ones in steps of 128
_SENTENCES: Final = """\
the queue holds every job until a worker claims it and the answer is recorded once
a naïve retry asks twice while the ledger knows which call was paid, so a café in Zürich
sleeps well: retries wait, fences rise, leases end — nothing is lost; 答え 来る
and "quoted words", a \\ backslash and 🙂 are part of any honest text"""


def _written_pool() -> str:
    random = Random(51)  # noqa: S311 - words for a simulated text
    return " ".join(random.choices(_SENTENCES.split(" "), k=12_000))


_POOL: Final = _written_pool()
_ENCODER: Final = msgspec.json.Encoder()


def complete(request: ChatRequest, manner: Manner, ident: str, created: int) -> Completion:
    """Answer a request."""
    prompt = _prompt_tokens(request)
    count = request.body.n or 1
    choices = [_choice(request, manner, index) for index in range(count)]
    reasoning = sum(_tokens(choice.message.reasoning_content or "") for choice in choices)
    completion = reasoning + sum(_said_tokens(choice.message) for choice in choices)
    cached = prompt // 2 // 128 * 128 if prompt >= _CACHED_FROM else 0
    usage = Usage(
        prompt,
        completion,
        prompt + completion,
        PromptDetails(cached),
        CompletionDetails(reasoning),
    )
    return Completion(ident, created, request.body.model, choices, usage)


def encode(completion: Completion) -> bytes:
    """Give the JSON of a plain answer."""
    return _ENCODER.encode(completion)


def _choice(request: ChatRequest, manner: Manner, index: int) -> Choice:
    key = mix(manner.seed, request.content_key, index)
    if tools := _called_tools(request):
        choice = Choice(
            index, AnswerMessage(None, tool_calls=_tool_calls(tools, key)), "tool_calls"
        )
    else:
        choice = _spoken(request, manner, index, key)
    if request.body.model.endswith("-thinking"):
        choice.message.reasoning_content = _text(mix(key, 1), 40 + key % 160)
    _limit(choice, request.body.max_completion_tokens or request.body.max_tokens)
    if manner.ending:
        _cut(choice, manner.ending)
    return choice


def _spoken(request: ChatRequest, manner: Manner, index: int, key: int) -> Choice:
    form = request.body.response_format
    if form is None or form.type == "text":
        content = _text(key, manner.answer_bytes or 50 + key % 351)
    else:
        schema = form.json_schema.schema if form.json_schema else None
        content = _json(schema or {"properties": {"answer": {}}, "required": ["answer"]}, key)
    stopped = _stopped(content, request.body.stop)
    return Choice(index, AnswerMessage(stopped), "stop")


def _text(key: int, length: int) -> str:
    """Give `length` characters from a pool of words, from a place that `key` decides."""
    start = _POOL.find(" ", key % (len(_POOL) // 2)) + 1
    copies = (start + length) // len(_POOL) + 1
    return (_POOL * copies)[start : start + length]


def _json(schema: Any, key: int) -> str:
    return orjson.dumps(instance(schema, Random(key))).decode()  # noqa: S311 - made-up values


def _stopped(content: str, stop: str | list[str] | None) -> str:
    """Cut before the first stop sequence."""
    for sequence in [stop] if isinstance(stop, str) else stop or ():
        if sequence:
            content = content.partition(sequence)[0]
    return content


def _called_tools(request: ChatRequest) -> list[Tool]:
    """Give the tools to call: none, the chosen one, or one or two when a user has spoken last."""
    body, choice = request.body, request.body.tool_choice
    if not body.tools or choice == "none":
        return []
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        return [tool for tool in body.tools if tool.function.name == name]
    if request.messages[-1].role != "user" and choice != "required":
        return []
    return [body.tools[0], body.tools[-1]] if body.parallel_tool_calls else body.tools[:1]


def _tool_calls(tools: list[Tool], key: int) -> list[ToolCall]:
    return [
        ToolCall(
            f"call_{mix(key, number, 2):016x}",
            CalledFunction(
                tool.function.name,
                _json(tool.function.parameters or {"type": "object"}, mix(key, number)),
            ),
        )
        for number, tool in enumerate(tools)
    ]


def _limit(choice: Choice, max_tokens: int | None) -> None:
    """Keep to `max_tokens`, reasoning first; calls of tools are left whole."""
    if max_tokens is None:
        return
    message, left = choice.message, max_tokens * _CHARS_PER_TOKEN
    if message.reasoning_content:
        whole = message.reasoning_content
        message.reasoning_content = whole[:left]
        left = max(0, max_tokens - _tokens(whole)) * _CHARS_PER_TOKEN
    if message.content is not None and len(message.content) > left:
        message.content = message.content[:left]
        choice.finish_reason = "length"


def _cut(choice: Choice, ending: str) -> None:
    content = choice.message.content or ""
    choice.message.content = content[: len(content) // 2]
    choice.message.tool_calls = UNSET
    choice.finish_reason = ending


def _tokens(text: str) -> int:
    return -(-len(text) // _CHARS_PER_TOKEN)


def _said_tokens(message: AnswerMessage) -> int:
    calls = message.tool_calls or []
    called = sum(_tokens(call.function.name + call.function.arguments) for call in calls)
    return _tokens(message.content or "") + called


def _prompt_tokens(request: ChatRequest) -> int:
    tools = request.body.tools
    described = _tokens(orjson.dumps(msgspec.to_builtins(tools)).decode()) if tools else 0
    return 3 + described + sum(_message_tokens(message) for message in request.messages)


def _message_tokens(message: Message) -> int:
    content = message.content
    if content is None:
        return 4
    if isinstance(content, str):
        return 4 + _tokens(content)
    return 4 + sum(
        _tokens(part.text)
        if part.image_url is None
        else (_LOW_IMAGE_TOKENS if part.image_url.detail == "low" else _IMAGE_TOKENS)
        for part in content
    )
