import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.simulator.answers import Completion, Manner, complete, encode
from worker.simulator.bodies import BodyError, read_body
from worker.simulator.streams import events

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 8, "maxLength": 9},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 3, "exclusiveMaximum": 5},
        "ratio": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "exact": {"type": ["boolean", "null"]},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}, "minItems": 2},
        "fixed": {"const": 7},
        "never_asked": {"type": "string"},
    },
    "required": ["city", "unit", "days", "ratio", "exact", "stops", "fixed"],
    "$defs": {
        "stop": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/stop"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def chat(text: str = "Hello?", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.1", "messages": [{"role": "user", "content": text}], **fields}


def answer(body: dict[str, Any], manner: Manner | None = None) -> Completion:
    return complete(read_body(json.dumps(body).encode()), manner or Manner(), "chatcmpl-1", 1)


def plain(body: dict[str, Any], manner: Manner | None = None) -> dict[str, Any]:
    value = json.loads(encode(answer(body, manner)))
    assert isinstance(value, dict)
    return value


def assembled(parts: list[bytes]) -> dict[int, dict[str, Any]]:
    """Join the deltas of a stream as a client does, by choice."""
    choices: dict[int, dict[str, Any]] = {}
    for line in b"".join(parts).split(b"\n\n"):
        if not line.startswith(b"data: {"):
            continue
        for part in json.loads(line[6:])["choices"]:
            whole = choices.setdefault(part["index"], {"calls": {}})
            whole["finish_reason"] = part["finish_reason"]
            _join(whole, part["delta"])
    return choices


def _join(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        if delta.get(name) is not None:
            whole[name] = whole.get(name, "") + delta[name]
    for fragment in delta.get("tool_calls", ()):
        call = whole["calls"].setdefault(fragment["index"], {"arguments": ""})
        call |= {"id": fragment["id"]} if "id" in fragment else {}
        call["arguments"] += fragment["function"]["arguments"]


@given(
    text=st.text(max_size=200),
    model=st.sampled_from(["gpt-5.1", "gpt-5.1-thinking"]),
    n=st.integers(1, 3),
    tools=st.sampled_from([None, [WEATHER], [WEATHER, CLOCK]]),
    max_tokens=st.none() | st.integers(1, 200),
    chunks=st.integers(0, 300),
)
def test_a_stream_put_together_says_what_the_plain_answer_says(
    *, text: str, model: str, n: int, tools: Any, max_tokens: int | None, chunks: int
) -> None:
    body = chat(text, model=model, n=n, tools=tools, max_tokens=max_tokens)
    body["parallel_tool_calls"] = True
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    joined = assembled(events(answer(streamed), chunks=chunks, include_usage=True))
    for choice in plain(body)["choices"]:
        message, part = choice["message"], joined[choice["index"]]
        assert part["finish_reason"] == choice["finish_reason"]
        assert part.get("content") == message["content"]
        assert part.get("reasoning_content") == message.get("reasoning_content")
        calls = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
        assert [call["arguments"] for call in part["calls"].values()] == calls


def test_the_same_body_and_seed_give_the_same_answer_and_others_another() -> None:
    first = plain(chat())
    assert plain(chat()) == first
    assert plain(chat("Other?"))["choices"] != first["choices"]
    assert plain(chat(), Manner(seed=1))["choices"] != first["choices"]


def test_a_plain_answer_has_the_shape_of_the_reference() -> None:
    value = plain(chat())
    assert value["object"] == "chat.completion"
    assert value["choices"][0]["finish_reason"] == "stop"
    message = value["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert 50 <= len(message["content"]) <= 400
    usage = value["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_the_thinking_model_reasons_and_counts_it_within_the_completion() -> None:
    value = plain(chat(model="gpt-5.1-thinking"))
    reasoning = value["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert value["choices"][0]["message"]["reasoning_content"]
    assert 0 < reasoning < value["usage"]["completion_tokens"]


def test_arguments_of_a_tool_call_satisfy_its_schema() -> None:
    choice = plain(chat(tools=[WEATHER]))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    made = json.loads(call["function"]["arguments"])
    assert set(made) == set(PARAMETERS["required"])
    assert 8 <= len(made["city"]) <= 9
    assert made["unit"] in {"C", "F"}
    assert made["days"] in {3, 4}
    assert 0 < made["ratio"] < 1
    assert isinstance(made["exact"], bool)
    assert len(made["stops"]) == 2
    assert made["fixed"] == 7


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tool_choice": "none"}, []),
        ({"parallel_tool_calls": True}, ["weather", "clock"]),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, ["clock"]),
    ],
)
def test_tool_choice_and_parallel_calls_are_honoured(
    fields: dict[str, Any], names: list[str]
) -> None:
    message = plain(chat(tools=[WEATHER, CLOCK], **fields))["choices"][0]["message"]
    assert [call["function"]["name"] for call in message.get("tool_calls", ())] == names


def test_no_tool_is_called_again_once_its_result_is_there() -> None:
    body = chat(tools=[WEATHER])
    body["messages"].append({"role": "tool", "tool_call_id": "call_1", "content": "12 C"})
    assert plain(body)["choices"][0]["finish_reason"] == "stop"


def test_a_response_format_gives_an_instance_of_its_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": PARAMETERS}}
    content = plain(chat(response_format=form))["choices"][0]["message"]["content"]
    assert set(json.loads(content)) == set(PARAMETERS["required"])
    content = plain(chat(response_format={"type": "json_object"}))["choices"][0]["message"]
    assert isinstance(json.loads(content["content"]), dict)


def test_all_of_is_laid_together_and_circular_references_end() -> None:
    named = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    aged = {"properties": {"age": {"type": "integer", "maximum": -5}}, "required": ["age"]}
    circle = {"$ref": "#/$defs/circle"}
    schema = {"allOf": [named, aged], "$defs": {"circle": circle}, "properties": {"c": circle}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = json.loads(plain(chat(response_format=form))["choices"][0]["message"]["content"])
    assert set(made) == {"name", "age"}
    assert made["age"] <= -5


def test_max_tokens_cuts_the_answer_with_finish_reason_length() -> None:
    value = plain(chat(max_tokens=3))
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"]["completion_tokens"] == 3


def test_a_stop_sequence_ends_the_answer_before_it() -> None:
    content = plain(chat())["choices"][0]["message"]["content"]
    stop = content[20:24]
    stopped = plain(chat(stop=[stop]))["choices"][0]["message"]["content"]
    assert stopped == content.partition(stop)[0]


def test_images_and_long_prompts_count_as_tokens_and_long_prompts_are_cached_in_part() -> None:
    url = "data:image/png;base64," + "A" * 4000
    body = chat()
    body["messages"][0]["content"] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    assert 765 < plain(body)["usage"]["prompt_tokens"] < 800
    usage = plain(chat("word " * 2000))["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_usage_comes_on_a_chunk_without_choices_only_when_asked_for() -> None:
    def usages(*, asked: bool) -> list[Any]:
        parts = b"".join(events(answer(chat()), chunks=0, include_usage=asked)).split(b"\n\n")
        chunks = [json.loads(part[6:]) for part in parts if part.startswith(b"data: {")]
        return [chunk["choices"] for chunk in chunks if "usage" in chunk]

    assert usages(asked=True) == [[]]
    assert usages(asked=False) == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "gpt-5.1"}', "messages"),
        (b'{"messages": []}', "model"),
        (b'{"model": "m", "messages": []}', "messages"),
        (json.dumps(chat(temperature=2.1)).encode(), "temperature"),
        (json.dumps(chat(max_tokens=0)).encode(), "max_tokens"),
        (b'{"model": "m", "messages": [{"role": "king"}]}', "messages.0.role"),
        (b'{"model": "m", "messages": [{"role": "tool"}]}', "messages.0.tool_call_id"),
        (b"{", None),
        (b"\xff", None),
    ],
)
def test_an_invalid_body_is_refused_with_the_field_at_fault(body: bytes, param: str | None) -> None:
    with pytest.raises(BodyError) as caught:
        read_body(body)
    assert caught.value.param == param
