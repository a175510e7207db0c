"""The body of a call, where it is not the request as it was handed in, byte for byte.

Called by `worker.execution` just before a call. A request is stored as it came; for its call a
stream can be asked for, so that no proxy on the way takes a long silence for a dead connection, and
an earlier answer can be shown to the model again. Pure. It takes bodies that passed the check of
`worker.jobs.requests`, and of a key given twice the last counts, as there.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

_STREAMED: Final = {
    "stream": msgspec.Raw(b"true"),
    "stream_options": msgspec.Raw(b'{"include_usage":true}'),
}
_STREAMED_END: Final = ',"stream":true,"stream_options":{"include_usage":true}}'


class _Size(msgspec.Struct):
    """The fields that decide whether a request is called with a stream."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    # What these bring has pieces of a kind that is not put together from a stream.
    functions: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None

    @property
    def most_tokens(self) -> int:
        return max(self.max_tokens or 0, self.max_completion_tokens or 0)

    @property
    def comes_whole_from_a_stream(self) -> bool:
        """Whether its stream tells all that a plain answer does, and can be seen to be complete.

        A stream that breaks off between two choices looks like the end of an answer with one.
        """
        foreign = (self.functions, self.modalities, self.audio, self.web_search_options)
        return (self.n or 1) == 1 and not any(foreign)


_SIZE: Final = msgspec.json.Decoder(_Size)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Streaming:
    """Which requests are called with a stream though they ask for none.

    Those for one of `models`, and those that allow `from_tokens` tokens or more (0: none of them).
    """

    models: frozenset[str] = frozenset()
    from_tokens: int = 0


def needs_stream(body: str, model: str, streaming: Streaming) -> bool:
    """Whether a request for `model` that asks for no stream is to be called with one."""
    named = model in streaming.models
    # Most bodies set no limit, and need not be read.
    if not named and not (streaming.from_tokens and '_tokens"' in body):
        return False
    size = _SIZE.decode(body)
    large = 0 < streaming.from_tokens <= size.most_tokens
    return (named or large) and size.comes_whole_from_a_stream


def as_stream(body: str) -> str:
    """Ask for a stream that counts its tokens. The other fields keep their bytes and their order.

    Where neither of its two keys is there, so does everything between the fields.
    """
    if '"stream"' not in body and '"stream_options"' not in body:
        return body.rstrip()[:-1] + _STREAMED_END
    return msgspec.json.encode(_FIELDS.decode(body) | _STREAMED).decode()


def with_followup(body: str, followup: str) -> str:
    """Put the messages of `followup`, a JSON array, after those of the request.

    The other fields keep their bytes and their order.
    """
    fields = _FIELDS.decode(body)
    before, after = bytes(fields["messages"]).strip(), followup.strip()
    fields["messages"] = msgspec.Raw(before[:-1] + b"," + after[1:].encode())
    return msgspec.json.encode(fields).decode()
