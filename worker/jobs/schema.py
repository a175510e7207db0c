"""The shape of a chat-completion request, and what each field of it must be, in words.

`worker.jobs.requests` reads bodies against it. Types follow the API's reference, then OpenAI's;
where OpenAI allows null, so does this. Fields that are not named here pass unseen: the shape never
stands between a user and a field that a gateway added yesterday. Nothing here reads or decides.
Validated in the context LOCAL_IMAGES, an image may be a path; whether it leads to one is not asked.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Required

from pydantic import (
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    with_config,
)

# pydantic reads typing's own TypedDict only from Python 3.12 on
from typing_extensions import TypedDict

from worker.jobs.images import is_local

MODELS: Final = frozenset({"gpt-5.1", "gpt-5.1-chat", "gpt-5.1-thinking"})
IMAGE_TYPES: Final = ("png", "jpeg", "webp", "gif")
LOCAL_IMAGES: Final = "local images"

# strict: `true` is no number and "3" no integer. Infinity can only come from a literal like 1e999.
_strict = with_config(ConfigDict(strict=True, allow_inf_nan=False))

_DATA_URL = f"data:image/(?:{'|'.join(IMAGE_TYPES)});base64,[A-Za-z0-9+/]+={{0,2}}"
_IMAGE_URL = rf"^(?:(?i:https://)[^\s/]\S*|{_DATA_URL})$"


def _or_local(url: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    if info.context == LOCAL_IMAGES and isinstance(url, str) and is_local(url):
        return url
    return check(url)


Url = Annotated[str, StringConstraints(pattern=_IMAGE_URL), WrapValidator(_or_local)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[^\x00]+$")]


@_strict
class TextPart(TypedDict, total=False):
    """A part of a message that is text."""

    type: Required[Literal["text"]]
    text: Required[str]


@_strict
class ImageUrl(TypedDict, total=False):
    """Where an image is, or the image itself."""

    url: Required[Url]
    detail: Literal["auto", "low", "high"] | None


@_strict
class ImagePart(TypedDict, total=False):
    """A part of a message that is an image."""

    type: Required[Literal["image_url"]]
    image_url: Required[ImageUrl]


@_strict
class ForeignPart(TypedDict, total=False):
    """A part that OpenAI defines and this API's reference does not mention: passed on unread."""

    type: Required[Literal["input_audio", "file", "refusal"]]


Part = Annotated[TextPart | ImagePart | ForeignPart, Field(discriminator="type")]
Content = str | Annotated[list[Part], Field(min_length=1)]


@_strict
class CalledFunction(TypedDict, total=False):
    """The function a tool call names, and its arguments as JSON text."""

    name: Required[str]
    arguments: Required[str]


@_strict
class Call(TypedDict, total=False):
    """A tool call of an earlier answer."""

    id: Required[str]
    type: Literal["function"]
    function: Required[CalledFunction]


@_strict
class SpokenMessage(TypedDict, total=False):
    """A message of a role that always speaks."""

    role: Required[Literal["system", "developer", "user"]]
    content: Required[Content]
    name: str | None


@_strict
class AssistantMessage(TypedDict, total=False):
    """An earlier answer. Content may be missing where something stands in for it."""

    role: Required[Literal["assistant"]]
    content: Content | None
    name: str | None
    tool_calls: list[Call] | None
    # these stand in for content; OpenAI defines them, and they pass on unread
    refusal: Any
    function_call: Any
    audio: Any


@_strict
class ToolMessage(TypedDict, total=False):
    """The result of one tool call."""

    role: Required[Literal["tool"]]
    content: Required[Content]
    tool_call_id: Required[str]


Message = Annotated[SpokenMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


@_strict
class Function(TypedDict, total=False):
    """A function the model may call."""

    name: Required[Name]
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


@_strict
class Tool(TypedDict, total=False):
    """A tool the model may use."""

    type: Required[Literal["function"]]
    function: Required[Function]


@_strict
class NamedFunction(TypedDict, total=False):
    """A function by its name."""

    name: Required[str]


@_strict
class NamedTool(TypedDict, total=False):
    """The one tool the model must use."""

    type: Required[Literal["function"]]
    function: Required[NamedFunction]


@_strict
class PlainFormat(TypedDict, total=False):
    """An answer without a schema."""

    type: Required[Literal["text", "json_object"]]


@_strict
class JsonSchema(TypedDict, total=False):
    """A schema for the answer."""

    name: Required[Name]
    schema: dict[str, Any]
    description: str | None
    strict: bool | None


@_strict
class SchemaFormat(TypedDict, total=False):
    """An answer that follows a schema."""

    type: Required[Literal["json_schema"]]
    json_schema: Required[JsonSchema]


@_strict
class StreamOptions(TypedDict, total=False):
    """What a stream carries beside its text."""

    include_usage: bool | None


@_strict
class Body(TypedDict, total=False):
    """A chat-completion request."""

    model: Required[ModelName]
    messages: Required[Annotated[list[Message], Field(min_length=1)]]
    stream: bool | None
    stream_options: StreamOptions | None
    max_tokens: Count | None
    max_completion_tokens: Count | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    frequency_penalty: Penalty | None
    presence_penalty: Penalty | None
    stop: str | Annotated[list[str], Field(max_length=4)] | None
    tools: list[Tool] | None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None
    parallel_tool_calls: bool | None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None
    seed: int | None
    n: Count | None
    logprobs: bool | None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None
    logit_bias: dict[str, float] | None
    reasoning_effort: str | None
    metadata: dict[str, str] | None
    user: str | None


_CONTENT = "a string, or a list of at least one part"
_BOOLEAN = "true or false"
_STRING = "a string"
_COUNT = "a whole number, 1 or more"
_PENALTY = "a number between -2 and 2"
_NAME = "1 to 64 of the characters A-Z a-z 0-9 _ -"
_SCHEMA = "an object holding a JSON Schema"

EXPECTED: Final[Mapping[str, str]] = {
    "": "a JSON object",
    "model": "the name of a model, such as gpt-5.1",
    "messages": "a list of at least one message",
    "messages.#": "an object with role and content",
    "messages.#.role": "one of system, developer, user, assistant, tool",
    "messages.#.content": _CONTENT,
    "messages.#.content.#": "an object with a type",
    "messages.#.content.#.type": "text or image_url",
    "messages.#.content.#.text": _STRING,
    "messages.#.content.#.image_url": "an object with url",
    "messages.#.content.#.image_url.url": "an https:// URL or a base64 data URL of an image",
    "messages.#.content.#.image_url.detail": "auto, low or high",
    "messages.#.name": _STRING,
    "messages.#.tool_call_id": "the id of the tool call that this message answers",
    "messages.#.tool_calls": "a list of tool calls",
    "messages.#.tool_calls.#": "an object with id and function",
    "messages.#.tool_calls.#.id": _STRING,
    "messages.#.tool_calls.#.type": "function",
    "messages.#.tool_calls.#.function": "an object with name and arguments",
    "messages.#.tool_calls.#.function.name": _STRING,
    "messages.#.tool_calls.#.function.arguments": "a string holding the arguments as JSON",
    "stream": _BOOLEAN,
    "stream_options": "an object such as {include_usage: true}",
    "stream_options.include_usage": _BOOLEAN,
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "temperature": "a number between 0 and 2",
    "top_p": "a number between 0 and 1",
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "stop": "a string, or a list of at most 4 strings",
    "stop.#": _STRING,
    "tools": "a list of tools",
    "tools.#": "an object with type and function",
    "tools.#.type": "function",
    "tools.#.function": "an object with name and parameters",
    "tools.#.function.name": _NAME,
    "tools.#.function.description": _STRING,
    "tools.#.function.parameters": _SCHEMA,
    "tools.#.function.strict": _BOOLEAN,
    "tool_choice": "none, auto, required, or {type: function, function: {name}}",
    "tool_choice.type": "function",
    "tool_choice.function": "an object with name",
    "tool_choice.function.name": "the name of one of the tools",
    "parallel_tool_calls": _BOOLEAN,
    "response_format": "an object with a type",
    "response_format.type": "text, json_object or json_schema",
    "response_format.json_schema": "an object with name and schema",
    "response_format.json_schema.name": _NAME,
    "response_format.json_schema.schema": _SCHEMA,
    "response_format.json_schema.description": _STRING,
    "response_format.json_schema.strict": _BOOLEAN,
    "seed": "a whole number",
    "n": _COUNT,
    "logprobs": _BOOLEAN,
    "top_logprobs": "a whole number between 0 and 20",
    "logit_bias": "an object of numbers",
    "logit_bias.*": "a number",
    "reasoning_effort": "a string such as low, medium or high",
    "metadata": "an object of strings",
    "metadata.*": _STRING,
    "user": _STRING,
}
"""What each field must be, to follow the words "must be". `#` is any index, `*` any key."""
