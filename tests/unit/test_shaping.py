import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.shaping import Streaming, as_stream, needs_stream, with_followup

STREAMING = Streaming(frozenset({"slow"}), from_tokens=8_000)


def body(**fields: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields})


@pytest.mark.parametrize(
    ("text", "model", "streaming", "expected"),
    [
        (body(), "slow", STREAMING, True),
        (body(), "slow", Streaming(), False),
        (body(), "fast", STREAMING, False),
        (body(max_tokens=8_000), "fast", STREAMING, True),
        (body(max_completion_tokens=8_001), "fast", STREAMING, True),
        (body(max_tokens=10, max_completion_tokens=9_000), "fast", STREAMING, True),
        (body(max_tokens=7_999), "fast", STREAMING, False),
        (body(max_tokens=None), "fast", STREAMING, False),
        (body(max_tokens=8_000), "fast", Streaming(frozenset({"slow"}), 0), False),
        # a stream tells all of these
        (body(n=1, logprobs=True, tools=[], response_format={"type": "text"}), "slow", STREAMING,
         True),
        # … and of these less than a plain answer
        (body(n=2), "slow", STREAMING, False),
        (body(n=2, max_tokens=9_000), "fast", STREAMING, False),
        (body(functions=[{"name": "f"}]), "slow", STREAMING, False),
        (body(modalities=["text", "audio"]), "slow", STREAMING, False),
    ],
)  # fmt: skip
def test_a_stream_is_asked_for_where_a_call_may_take_long(
    text: str, model: str, streaming: Streaming, expected: bool
) -> None:
    assert needs_stream(text, model, streaming) == expected


def test_a_request_without_a_word_of_streams_keeps_every_byte() -> None:
    text = ' { "model":"m",  "messages" : [ ],"x":1.50 } \n'
    assert as_stream(text) == text[:-3] + (
        ',"stream":true,"stream_options":{"include_usage":true}}'
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": False},
        {"stream": None, "stream_options": None},
        {"stream_options": {"include_usage": False}, "user": "u"},
        {"metadata": {"stream": "false"}},
    ],
)
def test_a_key_that_is_there_is_replaced_and_not_doubled(fields: dict[str, Any]) -> None:
    text = as_stream(body(**fields))
    pairs = json.loads(text, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names))
    assert json.loads(text) == json.loads(body(**fields)) | {
        "stream": True,
        "stream_options": {"include_usage": True},
    }


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["stream", '"stream"', "stream_options", '{"stream":false}', "}", "\\"]
)
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(texts, deeper, max_size=3),
    max_leaves=8,
)
bodies = st.builds(
    lambda known, others: json.dumps({**others, **known}, indent=len(others) % 3 or None),
    st.fixed_dictionaries(
        {"model": texts, "messages": st.lists(values, min_size=1, max_size=3)},
        optional={"stream": st.none() | st.just(value=False), "stream_options": st.none()},
    ),
    st.dictionaries(texts, values, max_size=4),
)


def fields_of(text: str) -> dict[str, bytes]:
    raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return {name: bytes(value) for name, value in raw.items()}


@given(bodies)
def test_all_other_fields_of_a_stream_keep_their_bytes(text: str) -> None:
    before, after = fields_of(text), fields_of(as_stream(text))
    streamed = {"stream": b"true", "stream_options": b'{"include_usage":true}'}
    assert after == before | streamed


@given(bodies, st.lists(values, min_size=1, max_size=3))
def test_a_followup_comes_last_and_changes_nothing_else(text: str, messages: list[Any]) -> None:
    followed = with_followup(text, json.dumps(messages))
    before, after = fields_of(text), fields_of(followed)
    assert json.loads(after.pop("messages")) == json.loads(before.pop("messages")) + messages
    assert after == before
