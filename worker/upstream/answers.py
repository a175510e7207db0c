"""A reply that came in one piece: an `Answer`, or the `Failure` that it really is.

Called by the client once the whole body is here. A status of success proves nothing: only a choice
that says or finishes something is an answer. Pure; a body is parsed once.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from worker.jobs.outcomes import Answer, ErrorClass, Failure, Phase
from worker.upstream.faults import error_text, read_failure, request_id_of
from worker.upstream.texts import MAX_BODY, bounded, page_title, storable
from worker.upstream.wire import Choice, Message, Reply, read_reply, read_usage, tool_calls


def read_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, now: datetime | None = None
) -> Answer | Failure:
    """Read a whole reply.

    `headers`: keys in lower case, or a mapping that does not tell the cases apart. `now` (aware) is
    for failures that ask to wait until a date. Never raises: whatever came is one of the two.
    """
    if not 200 <= status < 300:
        return read_failure(status, headers, body, now=now)
    reply = read_reply(body)
    if reply is None:
        return _unreadable(status, headers, body)
    if reply.error:
        return _charged(read_failure(status, headers, body, now=now), reply)
    if reply.choices and _says_anything(reply.choices[0]):
        return _answer(status, headers, body, reply)
    if not reply.choices and _names_error(body):
        return _charged(read_failure(status, headers, body, now=now), reply)
    return _charged(_empty(status, headers, body, reply), reply)


def _says_anything(choice: Choice) -> bool:
    message = choice.message or choice.delta or Message()
    says = message.content or message.thought or message.refusal or message.tool_calls
    return bool(says or choice.finish_reason)


def _answer(status: int, headers: Mapping[str, str], body: bytes, reply: Reply) -> Answer:
    choice = reply.choices[0] if reply.choices else Choice()
    message = choice.message or choice.delta or Message()
    return Answer(
        body.decode(errors="replace").replace("\0", "\ufffd"),
        status,
        request_id_of(headers),
        _kept(reply.model),
        _kept(message.content),
        _kept(message.thought),
        _kept(message.refusal),
        _kept(choice.finish_reason),
        tool_calls(message.tool_calls) if message.tool_calls else (),
        read_usage(reply.usage),
    )


def _kept(text: str | None) -> str | None:
    return storable(text) if text else text


def _names_error(body: bytes) -> bool:
    """Tell an error without an `error` key, such as `{code, msg}`, from an answer without text."""
    error = error_text(body.decode(errors="replace"))
    return bool(error.code or error.message)


def _charged(failure: Failure, reply: Reply) -> Failure:
    """Add the tokens that a failure names: where tokens were counted, they may be billed."""
    usage = read_usage(reply.usage)
    if usage is None:
        return failure
    return replace(
        failure, usage=usage, maybe_billed=failure.maybe_billed or usage.total_tokens > 0
    )


def _empty(status: int, headers: Mapping[str, str], body: bytes, reply: Reply) -> Failure:
    what = "with an empty choice" if reply.choices else "without choices"
    return _no_answer("no_choices", f"HTTP {status} {what}", status, headers, body)


def _unreadable(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    text = body.decode(errors="replace")
    if not text.strip():
        return _no_answer("answer_empty", f"HTTP {status} with no body", status, headers, body)
    title = page_title(text)
    what = "is not a JSON object" if title is None else f'is a page of HTML: "{title}"'
    message = f"HTTP {status}, but the body {what}"
    return _no_answer("answer_not_json", message, status, headers, body)


def _no_answer(
    code: str, message: str, status: int, headers: Mapping[str, str], body: bytes
) -> Failure:
    """Make the failure of a success that holds no answer: the request may well have run."""
    return Failure(
        ErrorClass.DIVERT,
        code,
        bounded(message, MAX_BODY),
        Phase.ANSWERING,
        maybe_billed=True,
        status=status,
        request_id=request_id_of(headers),
        body=bounded(body.decode(errors="replace"), MAX_BODY) or None,
    )
