"""Reads the body of a chat-completions request, and says what is wrong with it as OpenAI does.

Called by `worker.simulator.service` for each call. Pure. It checks only what the reference states
(types, ranges, roles), and never refuses a field it does not know.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")
Sampling = Annotated[float, Meta(ge=-2, le=2)]


class ImageUrl(Struct, gc=False):
    """Where an image is, and how closely it is looked at."""

    url: str
    detail: str | None = None


class Part(Struct, gc=False):
    """One part of a message."""

    type: str
    text: str = ""
    image_url: ImageUrl | None = None


class Message(Struct, gc=False):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_call_id: str | None = None


class Function(Struct):
    """A function the model may call."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """An entry of `tools`."""

    function: Function
    type: Literal["function"] = "function"


class NamedSchema(Struct):
    """The schema an answer is to satisfy."""

    name: str
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    """The form an answer is to have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StreamOptions(Struct):
    """What a stream is to carry besides the answer."""

    include_usage: bool | None = None


class ChatBody(Struct):
    """The fields of a request that matter to an answer."""

    model: str
    messages: msgspec.Raw
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Sampling | None = None
    presence_penalty: Sampling | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, Any] | None = None


class BodyError(ValueError):
    """A request is not valid. `param` is the field at fault, dotted, or None."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request. `content_key` is the same for the same model and messages (64 bits)."""

    body: ChatBody
    messages: list[Message]
    content_key: int

    @property
    def script(self) -> str | None:
        """The fate the request asks for, as written; None: none."""
        script = self.body.metadata.get("simulate") if self.body.metadata else None
        return script if isinstance(script, str) else None


_BODY: Final = msgspec.json.Decoder(ChatBody)
_MESSAGES: Final = msgspec.json.Decoder(Annotated[list[Message], Meta(min_length=1)])
_MISSING: Final = re.compile("missing required field `(.+?)`")


def read_body(body: bytes) -> ChatRequest:
    """Read a request. Raises BodyError."""
    chat = _decode(_BODY, body, "")
    messages = _decode(_MESSAGES, bytes(chat.messages), "messages")
    for index, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id is None:
            param = f"messages.{index}.tool_call_id"
            raise BodyError("A message of role 'tool' needs a `tool_call_id`.", param)
    key = blake2b(chat.messages, digest_size=8, key=chat.model.encode()[:64]).digest()
    return ChatRequest(chat, messages, int.from_bytes(key, "big"))


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, within: str) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BodyError(str(error), _param(str(error), within)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = "We could not parse the JSON body of your request."
        raise BodyError(f"{message} ({error})", None) from error


def _param(message: str, within: str) -> str | None:
    """Give the dotted field of a message of msgspec such as "Expected … - at `$[0].role`"."""
    _, _, place = message.partition(" - at ")
    dotted = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", place.strip("`")).removeprefix("$").strip(".")
    missing = _MISSING.search(message)
    return ".".join(filter(None, (within, dotted, missing[1] if missing else ""))) or None
