"""The check of one chat-completion request body: every fault at once, in words a user can act on.

Called where requests are handed in (`worker.jobs.lines`, and whoever submits a single request). It
only reads: a body is stored exactly as it came, but for images that are named by a path; what may
be added for its call is the business of `worker.jobs.shaping`. It opens no file itself, knows no
batch and no clock, and never asks the upstream.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from worker.jobs.images import ImageError, ReadImage, is_local
from worker.jobs.schema import EXPECTED, IMAGE_TYPES, LOCAL_IMAGES, MODELS, Body
from worker.jobs.structured import schema_faults

Finding = tuple[str, str]
"""A field's dotted path into the body (empty: the body as a whole), and what is wrong with it."""

SHOWN: Final = 40
"""The most characters of a user's own text that a message repeats."""

SHOWN_PATH: Final = 100
"""The most characters of a path that a message repeats."""

_BODY: Final = TypeAdapter(Body)
_LITERALS: Final = {"None": "null", "True": "true", "False": "false"}
_POSITION = re.compile(r" at line \d+ column (\d+)$")


@dataclass(frozen=True, slots=True)
class BodyCheck:
    """What a body is. With `faults` it must not be stored, and the other fields mean nothing.

    `warnings` are worth showing and stop nothing. `multimodal`: a message holds something other
    than text, which decides the endpoint. `references`: for each image that is named by a path,
    its field and what is to stand there instead.
    """

    faults: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    model: str = ""
    stream: bool = False
    multimodal: bool = False
    references: tuple[tuple[str, str], ...] = ()


def check_body(raw: bytes, read_image: ReadImage | None = None) -> BodyCheck:
    """Check the JSON text of a request body against the API's reference.

    An image may be a path only where there is somebody to read it, who is asked about each. Of a
    key given twice the last counts, as JSON parsers do. Never raises.
    """
    try:
        body = _BODY.validate_json(raw, context=LOCAL_IMAGES if read_image else None)
    except ValidationError as error:
        return BodyCheck(faults=_all_faults(raw, error.errors(include_url=False), read_image))
    messages = _Messages(body["messages"], read_image)
    faults = [*messages.faults, *_tool_faults(body), *schema_faults(raw)]
    # pydantic's parser lets NaN and Infinity pass in fields that the schema does not name
    if (b"NaN" in raw or b"Infinity" in raw) and (fault := json_fault(raw)):
        faults.append(("", fault))
    if faults:
        return BodyCheck(faults=tuple(faults))
    return BodyCheck(
        warnings=_warnings(body, messages),
        model=body["model"],
        stream=body.get("stream") is True,
        multimodal=messages.multimodal,
        references=tuple(messages.references),
    )


def json_fault(raw: bytes) -> str | None:
    """Say what keeps `raw` from being JSON in UTF-8, and where; None if nothing does."""
    try:
        raw.decode()
        from_json(raw, allow_inf_nan=False)
    except UnicodeDecodeError as error:
        return (
            f"must be UTF-8 text, has the byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        )
    except ValueError as error:
        return "must be JSON: " + _POSITION.sub(r" at column \1", str(error))
    return None


class _Messages:
    """One reading of the messages, for the rules that tie one message to another.

    Takes messages that passed the schema, or any JSON at all: what has the wrong shape is passed
    over, as the schema has already named it.
    """

    def __init__(self, messages: Iterable[Any], read_image: ReadImage | None) -> None:
        self._read_image = read_image
        self.references: list[tuple[str, str]] = []
        self.faults: list[Finding] = []
        self.foreign: list[Finding] = []
        self.multimodal = False
        self._asked: set[str] = set()
        for at, message in enumerate(messages):
            if not isinstance(message, dict):
                continue
            if isinstance(content := message.get("content"), list):
                self._read_parts(at, content)
            role = message.get("role")
            if role == "assistant":
                self._read_assistant(at, message)
            elif role == "tool":
                self._read_answer(at, message.get("tool_call_id"))

    def _read_parts(self, at: int, parts: Sequence[Any]) -> None:
        for index, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                self.multimodal = True
            if kind == "image_url":
                self._read_url(
                    f"messages.{at}.content.{index}.image_url.url", _path(part, "image_url", "url")
                )
            if kind in ("input_audio", "file"):
                note = f"{kind} is not described for this API; it is sent as it is"
                self.foreign.append((f"messages.{at}.content.{index}.type", note))

    def _read_url(self, field: str, url: Any) -> None:
        if self._read_image is None or not isinstance(url, str) or not is_local(url):
            return
        try:
            self.references.append((field, self._read_image(url)))
        except ImageError as error:
            self.faults.append((field, f"must be an image, {_shown_path(url)} {error}"))

    def _read_assistant(self, at: int, message: Mapping[str, Any]) -> None:
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            self._asked.update(
                call["id"]
                for call in calls
                if isinstance(call, dict) and isinstance(call.get("id"), str)
            )
        if message.get("content") is None and not any(
            message.get(key) for key in ("tool_calls", "refusal", "function_call", "audio")
        ):
            fault = "is missing; a message of the assistant needs content or tool_calls"
            self.faults.append((f"messages.{at}.content", fault))

    def _read_answer(self, at: int, call_id: Any) -> None:
        if isinstance(call_id, str) and call_id not in self._asked:
            fault = (
                "must be the id of a tool call in an earlier message of the assistant, "
                f"is {shown(call_id)}"
            )
            self.faults.append((f"messages.{at}.tool_call_id", fault))


def _tool_faults(body: Mapping[str, Any]) -> list[Finding]:
    """Check the names of tools: each is given once, and the one chosen is among them."""
    tools = body.get("tools")
    names: set[str] = set()
    faults: list[Finding] = []
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        name = _path(tool, "function", "name")
        if not isinstance(name, str):
            continue
        if name in names:
            fault = f"must be unique, {shown(name)} is used before"
            faults.append((f"tools.{at}.function.name", fault))
        names.add(name)
    chosen = _path(body.get("tool_choice"), "function", "name")
    if isinstance(chosen, str) and chosen not in names:
        fault = f"must be the name of one of the tools, is {shown(chosen)}"
        faults.append(("tool_choice.function.name", fault))
    return faults


def _warnings(body: Body, messages: _Messages) -> tuple[Finding, ...]:
    found = messages.foreign
    if body["model"] not in MODELS:
        known = ", ".join(sorted(MODELS))
        note = f"{shown(body['model'])} is not a model of the reference ({known}); it is tried"
        found = [("model", note), *found]
    if body.get("stream_options") and not body.get("stream"):
        found = [*found, ("stream_options", "is refused by OpenAI unless stream is true")]
    return tuple(found)


def _all_faults(
    raw: bytes, errors: Sequence[ErrorDetails], read_image: ReadImage | None
) -> tuple[Finding, ...]:
    """Everything wrong with a body that the schema refuses, in the body's own order of rules."""
    if fault := json_fault(raw):
        return (("", fault),)
    body = from_json(raw)
    # A value that fits no branch of a union is reported once for each: they fall together here.
    found = dict(_finding(error, body) for error in errors)
    # A list that was tried as a list makes "is not a string" beside the fault inside it idle.
    idle = {parent for field in found for parent in _parents(field)}
    kept = [(field, text) for field, text in found.items() if field not in idle]
    if isinstance(body, dict):
        messages = body.get("messages")
        kept += _Messages(messages if isinstance(messages, list) else (), read_image).faults
        kept += _tool_faults(body)
        kept += schema_faults(raw)
    return tuple(kept)


def _parents(field: str) -> Iterable[str]:
    while "." in field:
        field = field.rpartition(".")[0]
        yield field


def _finding(error: ErrorDetails, body: Any) -> Finding:
    path = _real_path(error, body)
    expected = EXPECTED.get(_pattern(path), "what the reference says")
    if error["type"] in ("missing", "union_tag_not_found"):
        text = f"is missing, must be {expected}"
    else:
        given = _path(body, *path)
        if path[-2:] == ("image_url", "url") and isinstance(given, str):
            expected = _image_hint(given, expected)
        text = f"must be {expected}, is {shown(given)}"
    return ".".join(map(str, path)), text


def _real_path(error: ErrorDetails, body: Any) -> tuple[str | int, ...]:
    """Turn an error's place into a path into the body: pydantic mixes in branches of unions."""
    parts = list(error["loc"])
    if parts[:1] == ["messages"]:
        del parts[2:3]  # the role that was tried
    path: list[str | int] = []
    value = body
    for last, part in zip([*[False] * (len(parts) - 1), True], parts, strict=False):
        if _has(value, part):
            value = value[part]
        elif not (last and error["type"] == "missing"):
            continue
        path.append(part)
    if error["type"].startswith("union_tag") and isinstance(value, dict):
        path.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _path(value: Any, *parts: str | int) -> Any:
    """Give the value at a path, or None where the path leads nowhere."""
    for part in parts:
        if not _has(value, part):
            return None
        value = value[part]
    return value


def _pattern(path: Sequence[str | int]) -> str:
    if len(path) > 1 and path[0] in ("metadata", "logit_bias"):
        return f"{path[0]}.*"
    return ".".join("#" if isinstance(part, int) else part for part in path)


def _image_hint(url: str, expected: str) -> str:
    """Say what to write in place of this image URL."""
    start = url[:SHOWN].lower()
    if start.startswith("http://"):
        return "an https:// URL (http:// is not encrypted, and is refused)"
    if start.startswith("data:"):
        kinds = ", ".join(IMAGE_TYPES)
        return f"of the form data:image/KIND;base64,DATA with KIND one of {kinds}"
    if is_local(url):
        return (
            f"{expected} (a file on your disk is sent only with --images DIR, which names its "
            "folder; or encode it as a data URL)"
        )
    return expected


def shown(value: Any) -> str:
    """Render a value as a message may repeat it: short, and never a whole text."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= SHOWN else f'"{value[:SHOWN]}…"'
    return _LITERALS.get(repr(value)) or f"{value!r:.40}"


def _shown_path(path: str) -> str:
    """Render a path as a message may repeat it: what tells files apart is at its end."""
    return f'"{path}"' if len(path) <= SHOWN_PATH else f'"…{path[-SHOWN_PATH:]}"'
