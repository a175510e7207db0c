"""A streamed reply, put together from its bytes as they arrive: the same `Answer` as a plain call.

Called by the client with every piece it reads. It works on bytes and looks at each of them once; it
neither waits nor measures: `began` tells the caller when to look at its clock. A stream that ends
without a finish_reason is a failure, never a short answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec

from worker.jobs.outcomes import Answer, ErrorClass, Failure, Phase
from worker.upstream.answers import read_answer
from worker.upstream.faults import (
    TransportFault,
    error_text,
    read_failure,
    request_id_of,
    transport_failure,
)
from worker.upstream.texts import MAX_BODY, bounded, storable
from worker.upstream.wire import (
    NULL,
    Call,
    Choice,
    Function,
    Message,
    Reply,
    read_reply,
    read_usage,
    tool_calls,
)

_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = b"[DONE]"
_NOTHING: Final = b"null"
_UNREADABLE: Final = "stream_unreadable"

MAX_LINES: Final = 10_000
"""The most lines of one event, or of what is no event, that are kept."""

MAX_PARTS: Final = 1_000
"""The most choices of an answer, and tool calls of a choice: ten times what anybody allows."""


class _TooManyError(Exception):
    """More choices or tool calls than any answer has."""


class StreamAssembler:
    """Reads one stream: `feed` every piece, then `finish` (or `broken`) once.

    `headers`: keys in lower case, or a mapping that does not tell the cases apart. `now` (aware) is
    for failures that ask to wait until a date. `began`: the first text, thought or tool call is
    here; what the caller then sets as `first_token_seconds` goes into the answer. `events`
    counts what has come. `done`: nothing that follows can matter, so the caller may stop reading.
    """

    __slots__ = (
        "_data",
        "_event",
        "_failure",
        "_first",
        "_headers",
        "_now",
        "_picture",
        "_rest",
        "_status",
        "_stray",
        "began",
        "done",
        "events",
        "first_token_seconds",
    )  # fmt: skip

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        now: datetime | None = None,
    ) -> None:
        self.began = False
        self.done = False
        self.first_token_seconds: float | None = None
        self._status = status
        self._headers = headers or {}
        self._now = now
        self._rest: list[bytes] = []  # the pieces of a line that has not ended
        self._data: list[bytes] = []  # the data lines of an event that has not ended
        self._event = b""
        self.events = 0
        self._first = True
        self._stray: list[bytes] = []  # lines from before the first event that are no SSE
        self._picture = _Picture()
        self._failure: Failure | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        if self.done:
            return
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            self._rest.append(chunk)
            return
        if self._rest:
            head = b"".join((*self._rest, head))
            self._rest.clear()
        if tail:
            self._rest.append(tail)
        for line in head.split(b"\n"):
            self._read_line(line)

    def finish(self) -> Answer | Failure:
        """Say what the stream came to, once it has ended."""
        self._end()
        return self._settled() or self._without_events() or self._with_partial(self._cut())

    def broken(self, fault: TransportFault, message: str) -> Answer | Failure:
        """Say what the stream came to, once its connection has broken.

        An answer that was whole by then is an answer all the same, and need not be bought again.
        """
        self._end()
        failure = transport_failure(fault, message, phase=Phase.ANSWERING, status=self._status)
        return self._settled() or self._with_partial(failure)

    def _end(self) -> None:
        """Read what came after the last line's end."""
        if self.done:
            return
        self._read_line(b"".join(self._rest))
        self._read_line(b"")
        if self._failure is not None and self._failure.code == _UNREADABLE:
            self._failure = None  # half an event is the mark of a cut, not of bad JSON

    def _settled(self) -> Answer | Failure | None:
        if self._failure is not None:
            return self._with_partial(self._failure)
        if not self._picture.is_whole:
            return None
        answer = self._picture.answer(self._status, request_id_of(self._headers))
        return replace(answer, first_token_seconds=self.first_token_seconds)

    def _without_events(self) -> Answer | Failure | None:
        """Read a server's plain reply to a request for a stream."""
        if self.events or not any(map(bytes.strip, self._stray)):
            return None
        body = b"\n".join(self._stray)
        return read_answer(self._status, self._headers, body, now=self._now)

    def _read_line(self, line: bytes) -> None:
        if self.done:
            return
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if line.endswith(b"\r"):
            line = line[:-1]
        if line.startswith(b"data:"):
            self._add_data(line[5:])
        elif not line:
            self._end_event()
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        elif not self.events and not line.startswith((b":", b"id:", b"retry:")):
            self._stray.append(line)
            if len(self._stray) > MAX_LINES:
                self._fail(self._unreadable(line))

    def _add_data(self, line: bytes) -> None:
        if len(self._data) == 1 and read_reply(self._data[0]) is not None:
            self._end_event()  # a server that forgets the empty line between events
        self._data.append(line)
        if len(self._data) > MAX_LINES:
            self._fail(self._unreadable(line))

    def _end_event(self) -> None:
        event, self._event = self._event, b""
        if not self._data:
            return
        lines, self._data = self._data, []
        if len(lines) > 1 and read_reply(joined := b"\n".join(lines)) is not None:
            lines = [joined]
        # else they are events that a server forgot to part by empty lines
        for line in lines:
            if not self.done:
                self._read_event(event, line)

    def _read_event(self, event: bytes, data: bytes) -> None:
        reply = read_reply(data)
        if reply is None:
            self._read_mark(data.strip())
            return
        self.events += 1
        if reply.error or event == b"error" or (not reply.choices and _is_bare_error(data)):
            self._fail(read_failure(self._status, self._headers, data, now=self._now))
        else:
            try:
                self.began = self._picture.add(reply) or self.began
            except _TooManyError:
                self._fail(self._unreadable(data))

    def _read_mark(self, data: bytes) -> None:
        if data == _DONE:
            self.done = True
        elif data:
            self._fail(self._unreadable(data))

    def _fail(self, failure: Failure) -> None:
        self._failure = failure
        self.done = True

    def _unreadable(self, data: bytes) -> Failure:
        """Make the failure of an event that is no JSON: it may have carried a piece of the text."""
        return replace(
            self._cut(),
            code=_UNREADABLE,
            message="an event of the stream is not a JSON object",
            body=bounded(data.decode(errors="replace"), MAX_BODY),
        )

    def _cut(self) -> Failure:
        return Failure(
            ErrorClass.DIVERT,
            "stream_cut",
            "the stream ended before its answer did: no finish_reason came",
            Phase.ANSWERING,
            maybe_billed=True,
            status=self._status,
            request_id=request_id_of(self._headers),
        )

    def _with_partial(self, failure: Failure) -> Failure:
        usage = self._picture.usage
        return replace(
            failure,
            partial=self._picture.text or None,
            usage=read_usage(usage),
            # what has begun to answer has run
            maybe_billed=failure.maybe_billed or self.began,
            request_id=failure.request_id or request_id_of(self._headers),
        )


class _Picture:
    """The answer as far as it is known."""

    __slots__ = ("choices", "created", "id", "model", "usage")

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.created: int | None = None
        self.usage = NULL
        self.choices: dict[int, _Parts] = {}

    def add(self, reply: Reply) -> bool:
        """Add one event; whether it said anything."""
        if self.id is None and reply.id:
            self.id = storable(reply.id)
        if self.model is None and reply.model:
            self.model = storable(reply.model)
        if self.created is None:
            self.created = reply.created
        if bytes(reply.usage) != _NOTHING:
            self.usage = reply.usage
        said = False
        for choice in reply.choices or ():
            said = self._parts(choice.index or 0).add(choice) or said
        return said

    @property
    def is_whole(self) -> bool:
        """Whether every choice that began has ended."""
        return bool(self.choices) and all(parts.finish for parts in self.choices.values())

    @property
    def text(self) -> str:
        """The text of the first choice so far."""
        return self._ordered()[0].message().content or "" if self.choices else ""

    def answer(self, status: int, request_id: str | None) -> Answer:
        """Write the answer in the form of a plain call."""
        first = self._ordered()[0]
        message = first.message()
        return Answer(
            self._body(),
            status,
            request_id,
            self.model,
            message.content,
            message.reasoning_content,
            message.refusal,
            first.finish,
            tool_calls(message.tool_calls) if message.tool_calls else (),
            read_usage(self.usage),
        )

    def _parts(self, index: int) -> "_Parts":
        parts = self.choices.get(index)
        if parts is None:
            if len(self.choices) >= MAX_PARTS:
                raise _TooManyError
            parts = self.choices[index] = _Parts(index)
        return parts

    def _ordered(self) -> "list[_Parts]":
        return [self.choices[index] for index in sorted(self.choices)]

    def _body(self) -> str:
        body: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created or 0,
            "model": self.model,
            "choices": [parts.as_json() for parts in self._ordered()],
        }
        if bytes(self.usage) != _NOTHING:
            body["usage"] = self.usage
        return msgspec.json.encode(body).decode(errors="replace").replace("\0", "\ufffd")


class _Parts:
    """One choice as far as it is known: its pieces, in order."""

    __slots__ = ("calls", "content", "finish", "index", "logprobs", "refusal", "thought")

    def __init__(self, index: int) -> None:
        self.index = index
        self.content: list[str] = []
        self.thought: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[_CallParts] = []
        self.logprobs: list[msgspec.Raw] = []
        self.finish: str | None = None

    def add(self, choice: Choice) -> bool:
        """Add one event's piece; whether it said anything."""
        if choice.finish_reason:
            self.finish = storable(choice.finish_reason)
        if bytes(choice.logprobs) != _NOTHING:
            self.logprobs.append(choice.logprobs)
        delta = choice.delta or choice.message
        return delta is not None and self._add_delta(delta)

    def _add_delta(self, delta: Message) -> bool:
        if (content := delta.content) is not None:
            self.content.append(content)
        if thought := delta.thought:
            self.thought.append(thought)
        if refusal := delta.refusal:
            self.refusal.append(refusal)
        for fragment in delta.tool_calls or ():
            self._call_of(fragment).add(fragment)
        return bool(content or thought or refusal or delta.tool_calls)

    def _call_of(self, fragment: Call) -> "_CallParts":
        """Find the call that a fragment belongs to, or begin it.

        By index, then by id; a fragment with neither goes on with the last call. A new id under a
        known index is a new call: some servers give every call the index 0. So is a new name
        without an index or an id: some send whole calls, one after the other.
        """
        for call in reversed(self.calls):
            if call.takes(fragment):
                return call
        if len(self.calls) >= MAX_PARTS:
            raise _TooManyError
        index = len(self.calls) if fragment.index is None else fragment.index
        self.calls.append(_CallParts(index))
        return self.calls[-1]

    def message(self) -> Message:
        """Give what was said, joined."""
        calls = [call.whole() for call in sorted(self.calls, key=lambda call: call.index)]
        return Message(
            _joined(self.content),
            _joined(self.thought),
            None,
            _joined(self.refusal),
            calls or None,
        )

    def as_json(self) -> dict[str, Any]:
        """Give the choice as a plain call has it."""
        message = self.message()
        spoken: dict[str, Any] = {"role": "assistant", "content": message.content}
        if message.reasoning_content is not None:
            spoken["reasoning_content"] = message.reasoning_content
        if message.refusal is not None:
            spoken["refusal"] = message.refusal
        if message.tool_calls:
            spoken["tool_calls"] = [_call_json(call) for call in message.tool_calls]
        choice = {"index": self.index, "message": spoken, "finish_reason": self.finish}
        if self.logprobs:
            choice["logprobs"] = _merged(self.logprobs)
        return choice


class _CallParts:
    """One tool call as far as it is known."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []

    def takes(self, fragment: Call) -> bool:
        """Whether a fragment goes on with this call."""
        if fragment.index is None and not fragment.id:
            return not (self.name and fragment.function and fragment.function.name)
        if fragment.index is not None and fragment.index != self.index:
            return False
        return not fragment.id or not self.id or fragment.id == self.id

    def add(self, fragment: Call) -> None:
        """Add one fragment. Id and name come once, or again and again the same."""
        self.id = self.id or fragment.id
        if (function := fragment.function) is None:
            return
        self.name = self.name or function.name
        if function.arguments:
            self.arguments.append(function.arguments)

    def whole(self) -> Call:
        """Give the call, joined."""
        name = storable(self.name or "")
        function = Function(name, storable("".join(self.arguments)))
        return Call(self.index, storable(self.id or ""), function)


def _is_bare_error(data: bytes) -> bool:
    """Tell an error without an `error` key, such as `{code, message}`, from an event of usage."""
    error = error_text(data.decode(errors="replace"))
    return bool(error.code and error.message)


def _joined(pieces: list[str]) -> str | None:
    return storable("".join(pieces)) if pieces else None


def _call_json(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": call.function}


def _merged(pieces: Iterable[msgspec.Raw]) -> dict[str, list[msgspec.Raw] | None]:
    """Join the log probabilities of all events: lists of tokens, by kind."""
    merged: dict[str, list[msgspec.Raw] | None] = {}
    for piece in pieces:
        try:
            kinds = msgspec.json.decode(piece, type=dict[str, list[msgspec.Raw] | None])
        except ValueError:
            continue  # not a shape that can be joined; the answer itself does not depend on it
        for kind, tokens in kinds.items():
            merged[kind] = [*(merged.get(kind) or ()), *tokens] if tokens else merged.get(kind)
    return merged
