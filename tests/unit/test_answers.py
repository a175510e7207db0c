import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.outcomes import Answer, ErrorClass, Failure, Phase, ToolCall, Usage
from worker.upstream.answers import read_answer

HEADERS = {"x-request-id": "req-1"}
MESSAGE = {"role": "assistant", "content": "Hello"}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
REPLY = {"id": "c-1", "object": "chat.completion", "model": "gpt-5.1", "choices": [CHOICE]}


def reply(**fields: Any) -> bytes:
    whole = {**REPLY, **fields}
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def saying(**message: Any) -> bytes:
    return reply(choices=[{**CHOICE, "message": message}])


def answer(body: bytes) -> Answer:
    outcome = read_answer(200, HEADERS, body)
    assert isinstance(outcome, Answer), outcome
    return outcome


def failure(body: bytes, status: int = 200) -> Failure:
    outcome = read_answer(status, HEADERS, body)
    assert isinstance(outcome, Failure), outcome
    return outcome


def test_a_whole_answer_is_read() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "input_tokens": 0,
        "output_tokens": 0,
    }
    raw = reply(usage=usage)
    assert answer(raw) == Answer(
        body=raw.decode(),
        status=200,
        request_id="req-1",
        model="gpt-5.1",
        content="Hello",
        finish_reason="stop",
        usage=Usage(9, 4, 5, 3, 14),
    )


@pytest.mark.parametrize("missing", [None, ...])
@pytest.mark.parametrize("field", ["id", "model", "usage", "object", "created", "error"])
def test_a_field_that_is_null_or_missing_does_not_matter(field: str, missing: Any) -> None:
    assert answer(reply(**{field: missing})).content == "Hello"


@pytest.mark.parametrize("message", [{}, {"content": None, "tool_calls": None, "refusal": None}])
def test_an_answer_may_finish_without_text(message: dict[str, Any]) -> None:
    found = answer(saying(**message))
    assert (found.content, found.finish_reason, found.tool_calls) == (None, "stop", ())


@pytest.mark.parametrize("reason", [None, "a_reason_of_tomorrow", "content_filter"])
def test_any_finish_reason_is_kept(reason: str | None) -> None:
    assert answer(reply(choices=[{**CHOICE, "finish_reason": reason}])).finish_reason == reason


def test_reasoning_is_read_under_both_names_and_never_joined() -> None:
    assert answer(saying(content="a", reasoning="t")).reasoning_content == "t"
    both = answer(saying(content="a", reasoning_content="first", reasoning="second"))
    assert both.reasoning_content == "first"


def test_tool_calls_keep_arguments_that_are_no_json_and_say_so() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"a":'}},
        {"id": None, "function": None},
    ]
    assert answer(saying(content=None, tool_calls=calls)).tool_calls == (
        ToolCall(0, "c1", "f", '{"a":1}', arguments_valid=True),
        ToolCall(1, "c2", "g", '{"a":', arguments_valid=False),
        ToolCall(2, "", "", "", arguments_valid=False),
    )


def test_arguments_that_came_as_an_object_become_text() -> None:
    calls = [{"id": "c", "function": {"name": "f", "arguments": {"city": "Köln"}}}]
    (call,) = answer(saying(tool_calls=calls)).tool_calls
    assert call.arguments == '{"city":"Köln"}'


def test_a_tool_call_without_a_readable_function_is_kept_by_its_id() -> None:
    (call,) = answer(saying(tool_calls=[{"id": "c", "function": 3}, "?"])).tool_calls
    assert (call.call_id, call.name, call.arguments) == ("c", "", "")


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}, None]
    assert answer(saying(content=parts)).content == "Hello"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 0, 4, 0, 7)),
        ({"prompt_tokens": "3", "completion_tokens": 4.0}, Usage(3, 0, 4, 0, 7)),
        ({"prompt_tokens": None, "prompt_tokens_details": "?"}, Usage()),
        ({"prompt_tokens": -5, "total_tokens": 10**30}, Usage(total_tokens=10**9)),
        ([], None),
        ("many", None),
        (float("nan"), None),
    ],
)
def test_usage_of_any_shape_is_read_as_far_as_it_goes(usage: Any, expected: Usage | None) -> None:
    assert answer(reply(usage=usage)).usage == expected


def test_what_sql_cannot_hold_is_replaced() -> None:
    found = answer(reply(model="m\0").replace(b"Hello", rb"a\u0000b \ud83d c"))
    assert (found.model, found.content) == ("m\ufffd", "a\ufffdb \ufffd c")
    assert r"a\u0000b" in found.body


def test_bytes_that_are_no_utf_8_are_replaced_in_text_and_body() -> None:
    found = answer(reply().replace(b"Hello", b"H\xffllo"))
    assert found.content == "H\ufffdllo"
    assert "H\ufffdllo" in found.body


def test_the_answer_is_that_of_the_first_choice() -> None:
    second = {"index": 1, "message": {"content": "Other"}, "finish_reason": "length"}
    found = answer(reply(choices=[CHOICE, second]))
    assert (found.content, found.finish_reason) == ("Hello", "stop")
    assert "Other" in found.body


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "answer_empty"),
        (b" \n", "answer_empty"),
        (b"<!DOCTYPE html><html><title>Oops</title></html>", "answer_not_json"),
        (b"OK", "answer_not_json"),
        (reply()[:-9], "answer_not_json"),
        (b"[]", "answer_not_json"),
        (b'"text"', "answer_not_json"),
        (b"null", "answer_not_json"),
        (b"[" * 99_999, "answer_not_json"),
        (b"{}", "no_choices"),
        (reply(choices=...), "no_choices"),
        (reply(choices=None), "no_choices"),
        (reply(choices=[]), "no_choices"),
        (reply(choices="none"), "no_choices"),
        (reply(choices=[None]), "no_choices"),
        (reply(choices=[{}]), "no_choices"),
        (reply(choices=[{"message": {"content": None}, "finish_reason": None}]), "no_choices"),
    ],
)
def test_a_success_that_holds_no_answer_is_a_failure_that_may_be_billed(
    raw: bytes, code: str
) -> None:
    found = failure(raw)
    assert (found.error_class, found.code, found.maybe_billed, found.phase, found.request_id) == (
        ErrorClass.DIVERT,
        code,
        True,
        Phase.ANSWERING,
        "req-1",
    )


def test_tokens_counted_without_an_answer_are_kept() -> None:
    found = failure(reply(choices=[], usage={"prompt_tokens": 8}))
    assert found.usage == Usage(prompt_tokens=8, total_tokens=8)


@pytest.mark.parametrize(
    ("raw", "error_class", "code"),
    [
        (b'{"error":{"code":402,"message":"no credit"}}', ErrorClass.PAUSE, "insufficient_quota"),
        (b'{"error":{"code":"insufficient_quota"}}', ErrorClass.PAUSE, "insufficient_quota"),
        (b'{"message":"slow","type":"","code":429}', ErrorClass.RETRY, "rate_limit_exceeded"),
        (b'{"success":false,"code":500,"msg":"oh"}', ErrorClass.RETRY, "server_error"),
        (b'{"error":"boom"}', ErrorClass.RETRY, "upstream_error"),
        (
            b'{"error":{"type":"invalid_request_error"}}',
            ErrorClass.PERMANENT,
            "invalid_request_error",
        ),
        (reply(error={"code": "server_error"}), ErrorClass.RETRY, "server_error"),
    ],
)
def test_an_error_under_a_status_of_success_is_classed_by_its_code(
    raw: bytes, error_class: ErrorClass, code: str
) -> None:
    found = failure(raw)
    assert (found.error_class, found.code) == (error_class, code)


def test_a_status_other_than_success_is_never_an_answer() -> None:
    assert failure(reply(), 500).error_class is ErrorClass.RETRY
    assert failure(b"", 302).code == "redirect_refused"


FIELDS = [
    *("choices", "message", "delta", "content", "reasoning", "tool_calls", "function", "name"),
    *("arguments", "finish_reason", "index", "logprobs", "id", "created", "code", "error"),
    *("usage", "prompt_tokens", "prompt_tokens_details", "cached_tokens"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(json_values)
def test_no_json_at_all_can_make_the_reader_raise(value: Any) -> None:
    for raw in (value, {"choices": value}, {"choices": [value], "usage": value}):
        assert isinstance(read_answer(200, {}, json.dumps(raw).encode()), Answer | Failure)


@given(st.binary(max_size=40))
def test_no_bytes_at_all_can_make_the_reader_raise(raw: bytes) -> None:
    for body in (raw, reply().replace(b"Hello", raw)):
        outcome = read_answer(200, {}, body)
        assert "\0" not in (outcome.body or "")
