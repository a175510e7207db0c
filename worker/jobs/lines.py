"""One line of a JSONL file of requests: the envelope of OpenAI's Batch API, or a bare body.

Called by the reader of files for each line that is not blank. It knows one line at a time: whether
a `custom_id` was seen before is the reader's to tell. Of a body it rewrites nothing but the paths
of images. An envelope may carry options of ours for the job, under `chatqueue`.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from worker.errors import Fault
from worker.jobs.images import ReadImage
from worker.jobs.options import NO_OPTIONS, JobOptions, check_options
from worker.jobs.requests import BodyCheck, Finding, check_body, json_fault
from worker.jobs.splice import image_urls, replaced

METHOD: Final = "POST"
URL: Final = "/v1/chat/completions"
MAX_ID: Final = 64

_BOM: Final = b"\xef\xbb\xbf"


class _Envelope(msgspec.Struct):
    """The keys of a line that matter. Any value is taken, so that every fault can be named."""

    custom_id: Any = msgspec.UNSET
    method: Any = msgspec.UNSET
    url: Any = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    chatqueue: Any = msgspec.UNSET

    @property
    def is_bare(self) -> bool:
        """A request body without an envelope. A custom_id or our options are marks of one."""
        marks = (self.body, self.custom_id, self.chatqueue)
        no_envelope = all(mark is msgspec.UNSET for mark in marks)
        return no_envelope and not (self.messages is msgspec.UNSET and self.model is msgspec.UNSET)


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request that may be stored.

    `body` is its text exactly as it stood in the line, but for references in the place of paths.
    """

    custom_id: str
    body: str
    model: str
    stream: bool
    multimodal: bool
    warnings: tuple[Fault, ...] = ()
    options: JobOptions = NO_OPTIONS


def is_blank(raw: bytes) -> bool:
    """Whether a line holds no request: the reader skips it, and counts it."""
    return not raw.removeprefix(_BOM).strip()


def check_line(
    raw: bytes, line: int, options: JobOptions = NO_OPTIONS, read_image: ReadImage | None = None
) -> RequestLine | tuple[Fault, ...]:
    """Check one line, which counts from 1: what to store, or everything that is wrong with it.

    `options` hold where the line has none of its own. A byte-order mark on line 1 and any line
    ending are tolerated. Never raises.
    """
    text = (raw.removeprefix(_BOM) if line == 1 else raw).strip()
    try:
        envelope = _ENVELOPE.decode(text)
    except (ValueError, RecursionError) as error:
        return (Fault(line, "", _unreadable(text, error)),)
    if envelope.is_bare:
        return _result(_Place(str(line), line, ""), text, options, read_image)
    faults = _envelope_faults(envelope, line)
    chosen = _options(envelope.chatqueue, options)
    if isinstance(chosen, tuple):
        faults += _placed(chosen, line, "chatqueue")
        chosen = options
    if isinstance(envelope.body, msgspec.UnsetType):
        return (*faults, Fault(line, "body", _NO_BODY))
    place = _Place(envelope.custom_id, line, "body")
    result = _result(place, bytes(envelope.body), chosen, read_image)
    if not isinstance(result, tuple):
        return faults or result
    if fault := json_fault(text):  # seen only by the closer look; its column counts in the line
        return (Fault(line, "", fault),)
    return (*faults, *result)


def check_single(
    body: bytes, options: JobOptions = NO_OPTIONS, read_image: ReadImage | None = None
) -> RequestLine | tuple[Fault, ...]:
    """Check a request that comes in no file: what to store, or everything that is wrong with it."""
    return _result(_Place("", 0, ""), body, options, read_image)


_NO_BODY: Final = "is missing, must be the request: an object with model and messages"


def _unreadable(text: bytes, error: Exception) -> str:
    """Why the line as a whole is no envelope. `error` is the decoder's own word."""
    if isinstance(error, msgspec.ValidationError):
        # The first thing that is not an object ends the decoding, maybe before the text is bad.
        return json_fault(text) or "must be a JSON object"
    return json_fault(text) or f"must be JSON: {error}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a body stands. `prefix` is its own field of the line, empty where it is the line."""

    custom_id: str
    line: int
    prefix: str


def _result(
    place: _Place, body: bytes, options: JobOptions, read_image: ReadImage | None
) -> RequestLine | tuple[Fault, ...]:
    check = check_body(body, read_image)
    if check.faults:
        return _placed(check.faults, place.line, place.prefix)
    return RequestLine(
        custom_id=place.custom_id,
        body=_referring(body.decode(), check),
        model=check.model,
        stream=check.stream,
        multimodal=check.multimodal,
        warnings=_placed(check.warnings, place.line, place.prefix),
        options=options,
    )


def _referring(body: str, check: BodyCheck) -> str:
    """Put the references that the check gave in the place of the paths."""
    if not check.references:
        return body
    given = dict(check.references)
    urls = image_urls(body)
    return replaced(body, [(one, given[one.field]) for one in urls if one.field in given])


def _options(given: Any, rest: JobOptions) -> JobOptions | tuple[Finding, ...]:
    return rest if given is msgspec.UNSET else check_options(given, rest)


def _placed(findings: tuple[Finding, ...], line: int, prefix: str) -> tuple[Fault, ...]:
    return tuple(
        Fault(line, ".".join(filter(None, (prefix, field))), message) for field, message in findings
    )


def _envelope_faults(envelope: _Envelope, line: int) -> tuple[Fault, ...]:
    found = (
        ("custom_id", _id_fault(envelope.custom_id)),
        ("method", _fixed_fault(envelope.method, METHOD)),
        ("url", _fixed_fault(envelope.url, URL)),
    )
    return tuple(Fault(line, field, message) for field, message in found if message)


def _id_fault(value: Any) -> str | None:
    rule = f"must be a string of 1 to {MAX_ID} characters"
    if value is msgspec.UNSET:
        return f"is missing, {rule}"
    if not isinstance(value, str):
        return f"{rule}, is {msgspec.json.encode(value).decode():.40}"
    if not 1 <= len(value) <= MAX_ID:
        return f"{rule}, has {len(value)}"
    # PostgreSQL's text cannot hold it
    return "must not hold the character U+0000" if "\0" in value else None


def _fixed_fault(value: Any, expected: str) -> str | None:
    if value == expected:
        return None
    if value is msgspec.UNSET:
        return f'is missing, must be "{expected}"'
    return f'must be "{expected}", is {msgspec.json.encode(value).decode():.40}'
