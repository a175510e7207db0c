import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.outcomes import Answer, ErrorClass, Failure, Phase, ToolCall, Usage
from worker.upstream.answers import read_answer
from worker.upstream.faults import TransportFault
from worker.upstream.streams import MAX_LINES, MAX_PARTS, StreamAssembler

HEAD = {"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "gpt-5.1"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps({**HEAD, **fields}, ensure_ascii=False)}\n\n".encode()


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish}])


def fragment(arguments: str | None = None, **fields: Any) -> bytes:
    function = {"name": fields.pop("name", None), "arguments": arguments}
    return delta(tool_calls=[{**fields, "function": function}])


HELLO = [
    delta(role="assistant", content=""),
    delta(content="Grüße "),
    delta(content="😀!"),
    delta(finish="stop"),
    event(choices=[], usage=USAGE),
    DONE,
]
CALLS = [
    delta(role="assistant", content=None),
    fragment("", index=0, id="c0", name="f"),
    fragment('{"a"', index=0),
    fragment("{}", index=1, id="c1", name="g"),
    fragment(":1}", index=0),
    delta(finish="tool_calls"),
    DONE,
]
THOUGHT = [
    b": PING\r\n\r\n",
    b"event: message\r\nid: 4\r\n" + delta(reasoning_content="Hm.").replace(b"\n", b"\r\n"),
    b"retry: 10\n: keep-alive\n" + delta(content="42", reasoning_content=None),
    event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=USAGE),
]
TWO = [
    delta(1, content="b"),
    delta(0, content="a"),
    delta(0, finish="stop"),
    delta(1, finish="length"),
    DONE,
]
DECLINED = [
    delta(refusal="I can"),
    delta(refusal="not.", tool_calls=[{"index": 0, "id": "c"}]),
    delta(finish="stop"),
]
BROKEN_OFF = [delta(content="Half a ans"), b'data: {"choices": [{"ind']
REFUSED = [delta(content="So"), b'data: {"error": {"code": "server_error", "message": "x"}}\n\n']
PLAIN = [json.dumps({"choices": [{"message": {"content": "no stream"}}]}).encode()]
STREAMS = [HELLO, CALLS, THOUGHT, TWO, DECLINED, BROKEN_OFF, REFUSED, PLAIN]


def read(*pieces: bytes) -> Answer | Failure:
    assembler = StreamAssembler(200, {"x-request-id": "r-1"})
    for piece in pieces:
        assembler.feed(piece)
    return assembler.finish()


def answer(*pieces: bytes) -> Answer:
    outcome = read(*pieces)
    assert isinstance(outcome, Answer), outcome
    return outcome


def failure(*pieces: bytes) -> Failure:
    outcome = read(*pieces)
    assert isinstance(outcome, Failure), outcome
    return outcome


def test_a_stream_is_put_together_to_one_answer() -> None:
    found = answer(*HELLO)
    assert (found.content, found.finish_reason, found.model) == ("Grüße 😀!", "stop", "gpt-5.1")
    assert (found.usage, found.request_id) == (Usage(3, 0, 2, 0, 5), "r-1")


@pytest.mark.parametrize("stream", [HELLO, CALLS, THOUGHT, TWO, DECLINED])
def test_the_assembled_body_read_as_a_plain_reply_gives_the_same_answer(
    stream: list[bytes],
) -> None:
    streamed = answer(*stream)
    body = json.loads(streamed.body)
    assert body["object"] == "chat.completion"
    assert (body["id"], body["created"]) == ("c-1", 7)
    assert read_answer(200, {"x-request-id": "r-1"}, streamed.body.encode()) == streamed


@given(st.data())
def test_every_way_of_cutting_the_bytes_gives_the_same_outcome(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(STREAMS))
    whole = b"".join(stream)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=30)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(*pieces) == read(whole)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_single_cut_gives_the_same_outcome(stream: list[bytes]) -> None:
    whole = b"".join(stream).replace(b"\n", b"\r\n")
    expected = read(whole)
    for place in range(len(whole)):
        assert read(whole[:place], whole[place:]) == expected, place


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
SAYINGS = st.one_of(
    st.tuples(st.sampled_from(["content", "reasoning_content", "refusal"]), st.just(0), TEXT),
    st.tuples(st.just("call"), st.integers(0, 3), TEXT),
)
FRAMES = st.sampled_from(
    [
        b"data: %b\n\n",
        b"data:%b\r\n\r\n",
        b": PING\n\ndata: %b\n\n",
        b"event: message\nid: 1\nretry: 5\ndata: %b\n\n",
        b"\r\n: keep-alive\r\ndata: %b\r\n\r\n",
        b"data: %b\n",  # without the empty line between
    ]
)
JSON = [
    lambda value: json.dumps(value).encode(),
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
]


def piece(kind: str, index: int, text: str, *, first: bool) -> dict[str, Any]:
    """The delta that says a piece of text."""
    if kind != "call":
        return {kind: text}
    head = {"id": f"call-{index}", "type": "function"} if first else {}
    function = {"name": f"f{index}", "arguments": text} if first else {"arguments": text}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


@given(st.lists(SAYINGS, max_size=12), st.data())
def test_whatever_is_said_however_framed_and_cut_is_heard_in_full(
    sayings: list[tuple[str, int, str]], data: st.DataObject
) -> None:
    heard: dict[tuple[str, int], str] = {}
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant"}}]}]
    for kind, index, text in sayings:
        said = piece(kind, index, text, first=(kind, index) not in heard)
        heard[kind, index] = heard.get((kind, index), "") + text
        events.append({**HEAD, "choices": [{"index": 0, "delta": said, "finish_reason": None}]})
    events.append({**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events.append({**HEAD, "choices": [], "usage": USAGE})
    whole = b"".join(
        data.draw(FRAMES) % data.draw(st.sampled_from(JSON))(value) for value in events
    )
    whole += data.draw(st.sampled_from([b"", b"\n" + DONE, b"\r\n" + DONE]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=20)))
    found = answer(
        *(whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    )
    texts = (found.content, found.reasoning_content, found.refusal)
    names = ("content", "reasoning_content", "refusal")
    assert [text or "" for text in texts] == [heard.get((name, 0), "") for name in names]
    calls = {index: text for (kind, index), text in heard.items() if kind == "call"}
    assert {(call.call_id, call.name): call.arguments for call in found.tool_calls} == {
        (f"call-{index}", f"f{index}"): text for index, text in calls.items()
    }
    assert [call.call_id for call in found.tool_calls] == [f"call-{n}" for n in sorted(calls)]
    assert (found.usage, found.finish_reason) == (Usage(3, 0, 2, 0, 5), "stop")


@pytest.mark.parametrize("stream", STREAMS)
def test_byte_by_byte_gives_the_same_outcome(stream: list[bytes]) -> None:
    whole = b"".join(stream)
    assert read(*(bytes([byte]) for byte in whole)) == read(whole)


@pytest.mark.parametrize("stream", [HELLO, CALLS, TWO])
def test_line_endings_and_a_byte_order_mark_make_no_difference(stream: list[bytes]) -> None:
    whole = b"".join(stream)
    assert read(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n")) == read(whole)


def test_data_over_several_lines_is_one_event() -> None:
    pretty = json.dumps(
        {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}, indent=1
    )
    lines = b"".join(f"data: {line}\n".encode() for line in pretty.splitlines())
    assert answer(lines + b"\n" + DONE).content == "x"


def test_events_without_an_empty_line_between_are_told_apart() -> None:
    whole = b"".join(HELLO).replace(b"\n\n", b"\n")
    assert read(whole) == read(*HELLO)


def test_a_last_event_without_an_end_is_read() -> None:
    assert answer(delta(content="x"), delta(finish="stop").rstrip()).content == "x"


def test_the_first_word_can_be_timed() -> None:
    assembler = StreamAssembler()
    assembler.feed(b": PING\n\n" + delta(role="assistant", content=""))
    before = assembler.began
    assembler.feed(delta(content="x"))
    assert (before, assembler.began) == (False, True)
    assembler.first_token_seconds = 0.25
    assembler.feed(delta(finish="stop") + DONE)
    outcome = assembler.finish()
    assert isinstance(outcome, Answer)
    assert outcome.first_token_seconds == 0.25


@pytest.mark.parametrize("said", [delta(reasoning="t"), delta(refusal="n"), fragment("", id="c")])
def test_a_thought_a_refusal_and_a_tool_call_are_beginnings_too(said: bytes) -> None:
    assembler = StreamAssembler()
    assembler.feed(said)
    assert assembler.began


def test_the_end_mark_ends_the_reading() -> None:
    assembler = StreamAssembler(200, {"x-request-id": "r-1"})
    assembler.feed(b"".join(HELLO[:-1]))
    before = assembler.done
    assembler.feed(DONE)
    assert (before, assembler.done) == (False, True)
    assembler.feed(delta(content="after the end"))
    assert assembler.finish() == read(*HELLO)


def test_fragments_of_tool_calls_merge_by_index() -> None:
    assert answer(*CALLS).tool_calls == (
        ToolCall(0, "c0", "f", '{"a":1}', arguments_valid=True),
        ToolCall(1, "c1", "g", "{}", arguments_valid=True),
    )


@pytest.mark.parametrize(
    "fragments",
    [
        # no index at all
        [fragment("{", id="a", name="f"), fragment("}"), fragment("[", id="b"), fragment("]")],
        # every call under index 0
        [
            fragment("{}", index=0, id="a", name="f"),
            fragment("[", index=0, id="b"),
            fragment("]", index=0),
        ],
        # the id on every fragment
        [
            fragment("{", index=0, id="a", name="f"),
            fragment("}", index=0, id="a", name="f"),
            fragment("[]", index=1, id="b"),
        ],
        # out of order
        [fragment("[]", index=1, id="b"), fragment("{}", index=0, id="a", name="f")],
    ],
)
def test_tool_calls_survive_servers_that_number_them_badly(fragments: list[bytes]) -> None:
    calls = answer(*fragments, delta(finish="tool_calls")).tool_calls
    assert [(call.call_id, call.arguments) for call in calls] == [("a", "{}"), ("b", "[]")]


def test_whole_calls_without_index_and_id_stay_apart() -> None:
    calls = answer(fragment("{}", name="f"), fragment("[]", name="g"), delta(finish="x")).tool_calls
    assert [(call.name, call.arguments) for call in calls] == [("f", "{}"), ("g", "[]")]


def test_reasoning_is_kept_apart_from_the_text() -> None:
    found = answer(*THOUGHT)
    assert (found.reasoning_content, found.content) == ("Hm.", "42")


def test_further_choices_are_in_the_body() -> None:
    found = answer(*TWO)
    assert (found.content, found.finish_reason) == ("a", "stop")
    assert [choice["message"]["content"] for choice in json.loads(found.body)["choices"]] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "stream",
    [
        [event(choices=[], usage=USAGE), delta(content="x"), delta(finish="stop")],
        [
            event(choices=[], usage={"prompt_tokens": 1}),
            event(choices=[{"delta": {"content": "x"}, "finish_reason": "stop"}], usage=USAGE),
            event(choices=[], usage=None),
        ],
    ],
)
def test_usage_may_come_on_any_event_and_the_last_one_counts(stream: list[bytes]) -> None:
    assert answer(*stream).usage == Usage(3, 0, 2, 0, 5)


def test_log_probabilities_are_joined() -> None:
    def event_with(*tokens: str) -> bytes:
        logprobs = {"content": [{"token": token} for token in tokens], "refusal": None}
        return event(choices=[{"delta": {"content": "".join(tokens)}, "logprobs": logprobs}])

    odd = event(choices=[{"delta": {}, "logprobs": 3, "finish_reason": "stop"}])
    body = json.loads(answer(event_with("a"), event_with("b", "c"), odd).body)
    tokens = [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]]
    assert tokens == ["a", "b", "c"]


def test_an_emoji_cut_between_two_events_becomes_whole() -> None:
    half, other = (
        b'data: {"choices":[{"delta":{"content":"\\u%s"}}]}\n\n' % code
        for code in (b"d83d", b"de00")
    )
    found = answer(half, other, delta(finish="stop"))
    assert found.content == "😀"
    assert "😀" in found.body


def test_what_sql_cannot_hold_is_replaced() -> None:
    half = delta(content="a\0b HALF").replace(b"HALF", rb"\udc00")
    found = answer(half, delta(finish="stop"))
    assert found.content == "a\ufffdb \ufffd"
    assert json.loads(found.body)["choices"][0]["message"]["content"] == found.content


def test_a_stream_without_id_and_model_and_with_an_odd_end_is_whole_all_the_same() -> None:
    found = answer(
        b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"\\ud800"}],"usage":NaN}\n\n'
    )
    assert (found.finish_reason, found.model) == ("\ufffd", None)
    assert read_answer(200, {"x-request-id": "r-1"}, found.body.encode()) == found


@pytest.mark.parametrize("tail", [[], [DONE], [b'data: {"choi'], [b"data: [DO"]])
def test_a_stream_without_a_finish_reason_is_a_failure_that_keeps_what_came(
    tail: list[bytes],
) -> None:
    found = failure(delta(content="Half "), event(choices=[], usage=USAGE), *tail)
    assert (found.code, found.error_class) == ("stream_cut", ErrorClass.DIVERT)
    assert (found.partial, found.usage) == ("Half ", Usage(3, 0, 2, 0, 5))
    assert (found.maybe_billed, found.phase) == (True, Phase.ANSWERING)


def test_every_choice_must_have_finished() -> None:
    assert failure(delta(0, finish="stop"), delta(1, content="b"), DONE).code == "stream_cut"


@pytest.mark.parametrize("nothing", [b"", b"\n\n", b": PING\n\n", DONE])
def test_a_stream_of_nothing_is_a_failure(nothing: bytes) -> None:
    assert failure(nothing).code == "stream_cut"


@pytest.mark.parametrize(
    ("raw", "code", "billed"),
    [
        (b'data: {"error":{"code":429,"message":"slow"}}\n\n', "rate_limit_exceeded", False),
        (b'event: error\ndata: {"message":"boom"}\n\n', "upstream_error", True),
        (b'data: {"message":"out","type":"","code":402}\n\n', "insufficient_quota", False),
    ],
)
def test_an_error_event_is_a_failure_though_the_status_was_200(
    raw: bytes, code: str, billed: bool
) -> None:
    found = failure(raw)
    assert (found.code, found.maybe_billed, found.request_id) == (code, billed, "r-1")


def test_an_error_after_the_first_word_may_be_billed_and_keeps_the_text() -> None:
    assembler = StreamAssembler()
    assembler.feed(b"".join(REFUSED))
    assert assembler.done
    found = assembler.finish()
    assert isinstance(found, Failure)
    assert (found.code, found.partial, found.maybe_billed) == ("server_error", "So", True)


def test_an_event_that_cannot_be_read_is_a_failure() -> None:
    found = failure(delta(content="a"), b"data: {nonsense}\n\n", delta(finish="stop"))
    assert (found.code, found.partial, found.maybe_billed) == ("stream_unreadable", "a", True)


def test_a_plain_reply_in_place_of_a_stream_is_read_as_one() -> None:
    assert answer(*PLAIN).content == "no stream"
    assert failure(b"<html><body>no</body></html>").code == "answer_not_json"


def test_a_broken_connection_keeps_its_own_name_and_the_text_so_far() -> None:
    assembler = StreamAssembler(200, {"x-request-id": "r"})
    assembler.feed(delta(content="Half"))
    found = assembler.broken(TransportFault.RESET, "reset by peer")
    assert isinstance(found, Failure)
    assert (found.code, found.partial, found.phase, found.request_id) == (
        "connection_reset",
        "Half",
        Phase.ANSWERING,
        "r",
    )


def test_an_answer_that_was_whole_when_the_connection_broke_is_kept() -> None:
    assembler = StreamAssembler()
    assembler.feed(b"".join(HELLO[:4]))
    outcome = assembler.broken(TransportFault.READ_TIMEOUT, "silence")
    assert isinstance(outcome, Answer)
    assert outcome.content == "Grüße 😀!"


def test_any_number_of_events_may_come_without_an_empty_line_between() -> None:
    words = [delta(content="x").rstrip() + b"\n"] * (MAX_LINES + 1)
    found = answer(*words, delta(finish="stop").rstrip() + b"\n", DONE)
    assert found.content == "x" * (MAX_LINES + 1)


@pytest.mark.parametrize("line", [b"data:\n", b"data: x\n", b"xy\n"])
def test_an_event_of_endless_lines_is_given_up(line: bytes) -> None:
    assembler = StreamAssembler()
    assembler.feed(delta(content="a") if line.startswith(b"data") else b"")
    assembler.feed(line * (MAX_LINES + 1))
    assert assembler.done
    found = assembler.finish()
    assert isinstance(found, Failure)
    assert (found.code, found.maybe_billed) == ("stream_unreadable", True)


@pytest.mark.parametrize(
    "flood",
    [
        event(choices=[{"index": n} for n in range(MAX_PARTS + 1)]),
        delta(tool_calls=[{"index": n, "id": f"c{n}"} for n in range(MAX_PARTS + 1)]),
        delta(tool_calls=[{"function": {"name": "f"}}] * (MAX_PARTS + 1)),
    ],
    ids=["choices", "indexed calls", "whole calls"],
)
def test_more_choices_or_calls_than_any_answer_has_are_a_failure(flood: bytes) -> None:
    assert failure(delta(content="a"), flood, delta(finish="stop")).code == "stream_unreadable"


@given(st.lists(st.sampled_from([*HELLO, *CALLS, *THOUGHT, b"data:", b"\n", b"x", b"\r\n"])))
def test_no_order_of_events_can_make_the_reader_raise(pieces: list[bytes]) -> None:
    assert isinstance(read(*pieces), Answer | Failure)


@given(st.binary(max_size=60))
def test_no_bytes_at_all_can_make_the_reader_raise(raw: bytes) -> None:
    assert isinstance(read(raw, b"data: " + raw, *HELLO), Answer | Failure)


def test_two_hundred_events_take_well_under_the_bar_of_processor_time() -> None:
    pieces = [delta(content=f" word {number}") for number in range(200)] + HELLO[3:]

    def once() -> float:
        started = time.process_time()
        read(*pieces)
        return time.process_time() - started

    # the bar is 1.9 ms; the best of many, as the machine may be busy
    assert min(once() for _ in range(30)) < 0.003
