import json
from typing import Any

import pytest

from worker.jobs.images import ImageError
from worker.jobs.requests import check_body
from worker.jobs.schema import EXPECTED, Body

PNG = "data:image/png;base64,iVBORw0KGgo="
ASKING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ],
}


def body(**fields: Any) -> bytes:
    whole = {"model": "gpt-5.1", "messages": [{"role": "user", "content": "hi"}], **fields}
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def said(*messages: Any) -> bytes:
    return body(messages=list(messages))


def shown(*parts: Any) -> bytes:
    return said({"role": "user", "content": list(parts)})


def image(url: Any, **more: Any) -> bytes:
    return shown({"type": "image_url", "image_url": {"url": url, **more}})


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def shaped(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


@pytest.mark.parametrize(
    "raw",
    [
        body(),
        body(temperature=0),
        body(temperature=2.0, top_p=1, frequency_penalty=-2, presence_penalty=2),
        body(max_tokens=1, max_completion_tokens=2000, n=3, seed=-7, user="u"),
        body(stop="END"),
        body(stop=["a", "b", "c", "d"]),
        body(stream=True, stream_options={"include_usage": True}),
        body(temperature=None, stop=None, stream=None, max_tokens=None, tools=None),
        body(logprobs=True, top_logprobs=5, logit_bias={"50256": -100}, reasoning_effort="low"),
        body(metadata={"team": "search"}, parallel_tool_calls=False),
        body(tools=[tool(description="d", parameters={"type": "object"}, strict=True)]),
        body(tools=[tool()], tool_choice="required"),
        body(tools=[tool()], tool_choice={"type": "function", "function": {"name": "f"}}),
        body(response_format={"type": "json_object"}),
        body(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}),
        body(a_field_of_tomorrow={"deep": [1, 2]}),
        said({"role": "developer", "content": "d"}, {"role": "user", "content": ""}),
        said(ASKING, {"role": "tool", "tool_call_id": "call_1", "content": "42"}),
        said({"role": "assistant", "refusal": "no"}, {"role": "user", "content": "why?"}),
        shown({"type": "text", "text": "a"}, {"type": "text", "text": "b"}),
        image("https://example.com/cat.png", detail="low"),
        image("HTTPS://example.com/cat.png"),
        image(PNG),
    ],
)
def test_a_body_within_the_reference_has_no_faults_and_no_warnings(raw: bytes) -> None:
    check = check_body(raw)
    assert (check.faults, check.warnings) == ((), ())


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        (body(model=...), "model", "is missing"),
        (body(model=""), "model", "the name of a model"),
        (body(model=5), "model", "is 5"),
        (body(model="a\0b"), "model", "the name of a model"),
        (body(messages=...), "messages", "is missing"),
        (body(messages=[]), "messages", "at least one message, is a list of 0"),
        (body(messages="hi"), "messages", 'is "hi"'),
        (said(4), "messages.0", "is 4"),
        (said({"content": "x"}), "messages.0.role", "is missing"),
        (said({"role": "robot", "content": "x"}), "messages.0.role", 'is "robot"'),
        (said({"role": "user"}), "messages.0.content", "is missing"),
        (said({"role": "user", "content": None}), "messages.0.content", "is null"),
        (said({"role": "user", "content": 3}), "messages.0.content", "a string, or a list"),
        (said({"role": "user", "content": []}), "messages.0.content", "is a list of 0"),
        (said({"role": "user", "user": "u", "content": 1}), "messages.0.content", "is 1"),
        (said({"role": "assistant"}), "messages.0.content", "content or tool_calls"),
        (said({"role": "tool", "content": "x"}), "messages.0.tool_call_id", "is missing"),
        (
            said({"role": "tool", "tool_call_id": "c", "content": "x"}, ASKING),
            "messages.0.tool_call_id",
            "the id of a tool call in an earlier message",
        ),
        (
            said({**ASKING, "tool_calls": [{"id": "c"}]}),
            "messages.0.tool_calls.0.function",
            "is missing",
        ),
        (shown("text"), "messages.0.content.0", 'is "text"'),
        (shown({"type": "text"}), "messages.0.content.0.text", "is missing"),
        (shown({"type": "text", "text": 3}), "messages.0.content.0.text", "is 3"),
        (shown({"type": "smell"}), "messages.0.content.0.type", 'is "smell"'),
        (shown({"type": "image_url"}), "messages.0.content.0.image_url", "is missing"),
        (image(None), "messages.0.content.0.image_url.url", "is null"),
        (image("http://x/y.png"), "messages.0.content.0.image_url.url", "not encrypted"),
        (image("https://"), "messages.0.content.0.image_url.url", "an https:// URL"),
        (image("photos/cat.png"), "messages.0.content.0.image_url.url", "encode it as a data URL"),
        (image("file:///cat.png"), "messages.0.content.0.image_url.url", "only with --images DIR"),
        (image("s3://a/b.png"), "messages.0.content.0.image_url.url", "an https:// URL"),
        (image("chatqueue-image:00"), "messages.0.content.0.image_url.url", "an https:// URL"),
        (image("data:image/jpg;base64,AA=="), "messages.0.content.0.image_url.url", "jpeg"),
        (image("data:image/png,AA"), "messages.0.content.0.image_url.url", "base64,DATA"),
        (image(PNG, detail="huge"), "messages.0.content.0.image_url.detail", "auto, low or high"),
        (body(stream="yes"), "stream", "true or false"),
        (body(stream_options=True), "stream_options", "is true"),
        (body(max_tokens=0), "max_tokens", "1 or more, is 0"),
        (body(max_tokens=True), "max_tokens", "is true"),
        (body(max_tokens=1.5), "max_tokens", "is 1.5"),
        (body(max_tokens="9"), "max_tokens", 'is "9"'),
        (body(max_completion_tokens=0), "max_completion_tokens", "is 0"),
        (body(temperature=3), "temperature", "a number between 0 and 2, is 3"),
        (body(temperature=-0.1), "temperature", "is -0.1"),
        (body(temperature=True), "temperature", "is true"),
        (b'{"temperature":1e999,' + body()[1:], "temperature", "is inf"),
        (body(top_p=1.01), "top_p", "between 0 and 1"),
        (body(frequency_penalty=-2.5), "frequency_penalty", "between -2 and 2"),
        (body(presence_penalty=2.5), "presence_penalty", "between -2 and 2"),
        (body(stop=["a"] * 5), "stop", "at most 4 strings, is a list of 5"),
        (body(stop=7), "stop", "is 7"),
        (body(stop=[7]), "stop.0", "is 7"),
        (body(tools={}), "tools", "is an object"),
        (body(tools=[{**tool(), "type": "web"}]), "tools.0.type", "function"),
        (body(tools=[{"type": "function", "function": {}}]), "tools.0.function.name", "is missing"),
        (body(tools=[tool("a b")]), "tools.0.function.name", "A-Z a-z 0-9 _ -"),
        (body(tools=[tool("a" * 65)]), "tools.0.function.name", "…"),
        (body(tools=[tool(parameters=[])]), "tools.0.function.parameters", "JSON Schema"),
        (body(tools=[tool(), tool()]), "tools.1.function.name", "unique"),
        (body(tool_choice="maybe"), "tool_choice", "none, auto, required"),
        (
            body(tools=[tool()], tool_choice=tool("g")),
            "tool_choice.function.name",
            "one of the tools",
        ),
        (body(tool_choice={"type": "function"}), "tool_choice.function", "is missing"),
        (body(response_format={}), "response_format.type", "is missing"),
        (body(response_format={"type": "xml"}), "response_format.type", 'is "xml"'),
        (
            body(response_format={"type": "json_schema"}),
            "response_format.json_schema",
            "is missing",
        ),
        (
            body(response_format=shaped({"properties": {"a": {"type": "word"}}})),
            "response_format.json_schema.schema.properties.a.type",
            "must be a JSON Schema",
        ),
        (body(response_format=shaped([])), "response_format.json_schema.schema", "an object"),
        (body(n=0), "n", "is 0"),
        (body(seed=1.5), "seed", "a whole number"),
        (body(metadata={"a": 1}), "metadata.a", "a string, is 1"),
        (body(logit_bias={"1": "x"}), "logit_bias.1", "a number"),
        (b"[]", "", "a JSON object"),
        (b"", "", "must be JSON"),
        (b'{"model": "x",}', "", "at column 15"),
        (body()[:-1] + b',"x":NaN}', "", "must be JSON"),
        (body()[:-1] + b',"x":"\xff"}', "", "has the byte 0xff"),
        (body()[:-1] + b',"x":"\\ud800"}', "", "must be JSON"),
        (b'{"x":' + b"[" * 9_999 + b"]" * 9_999 + b"}", "", "recursion"),
    ],
)
def test_a_broken_rule_is_named_with_its_field_and_what_was_expected(
    raw: bytes, field: str, words: str
) -> None:
    faults = check_body(raw).faults
    assert [at for at, _ in faults] == [field]
    assert words in faults[0][1]


def test_all_faults_of_a_body_are_named_at_once() -> None:
    raw = body(
        model=...,
        temperature=3,
        messages=[{"role": "tool", "tool_call_id": "c", "content": "x"}, {"role": "assistant"}],
        tools=[tool("a b"), tool(), tool()],
        response_format=shaped({"type": 7}),
    )
    assert {field for field, _ in check_body(raw).faults} == {
        "model",
        "temperature",
        "messages.0.tool_call_id",
        "messages.1.content",
        "tools.0.function.name",
        "tools.2.function.name",
        "response_format.json_schema.schema.type",
    }


def test_a_fault_within_a_part_is_not_hidden_by_one_of_the_whole_content() -> None:
    raw = shown({"type": "text"}, {"type": "text", "text": "fine"}, {"type": "nose"})
    assert [field for field, _ in check_body(raw).faults] == [
        "messages.0.content.0.text",
        "messages.0.content.2.type",
    ]


def test_messages_never_repeat_a_whole_text() -> None:
    long = image("x" * 5_000)
    assert all(len(text) < 250 for _, text in check_body(long).faults)


def test_of_a_key_given_twice_the_last_one_counts() -> None:
    assert check_body(b'{"temperature":1,"temperature":9,' + body()[1:]).faults
    assert not check_body(b'{"temperature":9,"temperature":1,' + body()[1:]).faults


def test_a_word_like_nan_within_a_text_is_no_fault() -> None:
    raw = said({"role": "user", "content": "Why is NaN != NaN, and what of Infinity?"})
    assert check_body(raw).faults == ()


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (body(model="gpt-6"), "model"),
        (body(stream_options={"include_usage": True}), "stream_options"),
        (shown({"type": "file", "file": {"file_id": "f"}}), "messages.0.content.0.type"),
    ],
)
def test_what_is_merely_odd_is_a_warning(raw: bytes, field: str) -> None:
    check = check_body(raw)
    assert check.faults == ()
    assert [at for at, _ in check.warnings] == [field]


def test_the_check_tells_model_stream_and_multimodal() -> None:
    plain = check_body(body(model="gpt-5.1-chat"))
    assert (plain.model, plain.stream, plain.multimodal) == ("gpt-5.1-chat", False, False)
    assert check_body(body(stream=True)).stream
    assert check_body(image(PNG)).multimodal
    assert not check_body(shown({"type": "text", "text": "a"})).multimodal


def test_paths_of_images_are_asked_about_where_there_is_somebody_to_ask() -> None:
    asked: list[str] = []

    def read(path: str) -> str:
        asked.append(path)
        if "gone" in path:
            raise ImageError("does not exist")
        return f"the reference of {path}"

    parts = [
        {"type": "image_url", "image_url": {"url": url}}
        for url in ("a.png", "https://example.com/b.png", PNG, "file:///c.png")
    ]
    check = check_body(shown(*parts), read)
    assert check.multimodal
    assert check.references == (
        ("messages.0.content.0.image_url.url", "the reference of a.png"),
        ("messages.0.content.3.image_url.url", "the reference of file:///c.png"),
    )
    assert asked == ["a.png", "file:///c.png"]
    (fault,) = check_body(image("gone.png", detail="low"), read).faults
    assert fault == (
        "messages.0.content.0.image_url.url",
        'must be an image, "gone.png" does not exist',
    )
    both = {field for field, _ in check_body(image("gone.png", detail="huge"), read).faults}
    assert both == {
        "messages.0.content.0.image_url.url",
        "messages.0.content.0.image_url.detail",
    }
    (long,) = check_body(image("gone/" * 1_000), read).faults
    assert len(long[1]) < 250


@pytest.mark.parametrize("url", [None, 3, "", "http://x/y.png", "data:image/png,AA", "s3://a/b"])
def test_what_is_no_path_is_no_image_though_paths_may_be(url: Any) -> None:
    def read(_: str) -> str:
        raise AssertionError

    assert [at for at, _ in check_body(image(url), read).faults] == [
        "messages.0.content.0.image_url.url"
    ]


def test_every_field_of_the_schema_says_what_it_must_be() -> None:
    assert set(Body.__annotations__) <= set(EXPECTED)
