import json
from typing import Any

import pytest

from worker.errors import Fault
from worker.jobs.lines import RequestLine, check_line, is_blank
from worker.jobs.options import JobOptions

BODY = '{"model": "gpt-5.1",  "messages": [{"role": "user", "content": "Grüße 😀 \\u00e9"}]}'


def envelope(body: str = BODY, **fields: Any) -> bytes:
    whole = {"custom_id": "a-1", "method": "POST", "url": "/v1/chat/completions", **fields}
    kept = {key: value for key, value in whole.items() if value is not ...}
    return f'{json.dumps(kept)[:-1]}, "body": {body} }}'.encode()


def accepted(raw: bytes, line: int = 2) -> RequestLine:
    result = check_line(raw, line)
    assert isinstance(result, RequestLine), result
    return result


def refused(raw: bytes, line: int = 2) -> tuple[Fault, ...]:
    result = check_line(raw, line)
    assert isinstance(result, tuple)
    return result


def test_the_body_is_kept_byte_for_byte() -> None:
    line = accepted(envelope())
    assert (line.custom_id, line.body, line.model) == ("a-1", BODY, "gpt-5.1")


def test_a_bare_body_gets_its_line_number_as_id() -> None:
    line = accepted(BODY.encode(), 17)
    assert (line.custom_id, line.body) == ("17", BODY)


def test_a_bare_body_with_a_custom_id_is_told_to_use_the_envelope() -> None:
    faults = refused(b'{"custom_id": "a", ' + BODY.encode()[1:])
    assert [fault.field for fault in faults] == ["method", "url", "body"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"  \r\n"])
def test_any_line_ending_is_tolerated(end: bytes) -> None:
    assert accepted(envelope() + end).body == BODY
    assert accepted(BODY.encode() + end).body == BODY


def test_a_byte_order_mark_is_tolerated_on_line_1_only() -> None:
    marked = b"\xef\xbb\xbf" + envelope()
    assert accepted(marked, 1).custom_id == "a-1"
    assert "must be JSON" in refused(marked, 2)[0].message


@pytest.mark.parametrize("raw", [b"", b"\n", b" \t\r\n", b"\xef\xbb\xbf\n"])
def test_blank_lines_are_recognised(raw: bytes) -> None:
    assert is_blank(raw)


def test_a_line_with_anything_on_it_is_not_blank() -> None:
    assert not is_blank(b" x\n")


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        (envelope(custom_id=...), "custom_id", "is missing"),
        (envelope(custom_id=7), "custom_id", "is 7"),
        (envelope(custom_id=""), "custom_id", "has 0"),
        (envelope(custom_id="x" * 65), "custom_id", "has 65"),
        (envelope(custom_id="a\0"), "custom_id", "U+0000"),
        (envelope(method=...), "method", 'must be "POST"'),
        (envelope(method="GET"), "method", 'is "GET"'),
        (envelope(url="/v1/embeddings"), "url", '"/v1/chat/completions"'),
        (envelope(url=["x"]), "url", 'is ["x"]'),
        (envelope("3"), "body", "must be a JSON object, is 3"),
        (envelope('{"model": "gpt-5.1"}'), "body.messages", "is missing"),
        (envelope(BODY[:-1] + ', "temperature": 3}'), "body.temperature", "is 3"),
        (b'{"model": "gpt-5.1"}', "messages", "is missing"),
        (b'{"messages": []}', "messages", "at least one"),
        (b'{"custom_id": "a", nope}', "", "must be JSON: key must be a string at column 20"),
        (b'{"custom_id": "a"', "", "must be JSON: EOF"),
        (b"\xff\xfe", "", "must be UTF-8 text, has the byte 0xff at column 1"),
        (b"[1, 2]", "", "must be a JSON object"),
        (b"[1, 2", "", "must be JSON: EOF"),
        (b'{"body":' + b"[" * 9_999 + b"]" * 9_999 + b"}", "", "recursion"),
        (envelope('{"model": NaN}'), "", "must be JSON"),
    ],
)
def test_a_fault_names_its_line_its_field_and_what_was_expected(
    raw: bytes, field: str, words: str
) -> None:
    faults = refused(raw, 42)
    assert faults[0].line == 42
    assert field in [fault.field for fault in faults]
    assert words in next(fault.message for fault in faults if fault.field == field)


def test_bytes_that_are_no_utf_8_are_placed_in_the_line_not_in_the_body() -> None:
    raw = envelope().replace("ü".encode(), b"\xfc")
    place = raw.index(b"\xfc") + 1
    assert refused(raw) == (
        Fault(2, "", f"must be UTF-8 text, has the byte 0xfc at column {place}"),
    )


def test_faults_of_envelope_and_body_are_named_at_once() -> None:
    raw = envelope('{"model": "gpt-5.1", "temperature": 3}', custom_id=1, method="PUT")
    assert [fault.field for fault in refused(raw)] == [
        "custom_id",
        "method",
        "body.messages",
        "body.temperature",
    ]


def test_warnings_are_placed_like_faults() -> None:
    line = accepted(envelope(BODY.replace("gpt-5.1", "gpt-9")), 5)
    assert [(fault.line, fault.field) for fault in line.warnings] == [(5, "body.model")]


def test_a_broken_file_is_reported_with_each_line_and_field() -> None:
    lines = [envelope(custom_id=f"r-{number}") for number in range(1, 13)]
    lines[2] = b'{"custom_id": "r-3", "method": "POST" "url": "/v1/chat/completions"}'
    lines[6] = envelope('{"model": "gpt-5.1"}')
    lines[10] = envelope(BODY[:-1] + ', "temperature": 3}')
    results = [check_line(raw, number) for number, raw in enumerate(lines, 1)]
    faults = [fault for result in results if isinstance(result, tuple) for fault in result]
    assert [str(fault) for fault in faults] == [
        "line 3: must be JSON: expected `,` or `}` at column 39",
        "line 7: body.messages: is missing, must be a list of at least one message",
        "line 11: body.temperature: must be a number between 0 and 2, is 3",
    ]


# --- options of ours ------------------------------------------------------------------------------


def test_options_in_the_envelope_win_over_those_of_the_batch() -> None:
    rest = JobOptions(("https://batch.example",), 2)
    found = check_line(envelope(chatqueue={"reasks": 0}), 2, rest)
    assert isinstance(found, RequestLine)
    assert found.options == JobOptions(rest.endpoints, 0)
    assert found.body == BODY


def test_a_line_without_options_has_those_of_the_batch() -> None:
    rest = JobOptions(reasks=2)
    for raw in (envelope(), BODY.encode()):
        found = check_line(raw, 2, rest)
        assert isinstance(found, RequestLine)
        assert found.options == rest


def test_faults_of_options_are_named_with_all_others() -> None:
    options = {"reasks": "many", "endpoints": ["nowhere"], "speed": 1}
    raw = envelope('{"model": "gpt-5.1", "temperature": 3}', custom_id=1, chatqueue=options)
    assert [fault.field for fault in refused(raw)] == [
        "custom_id",
        "chatqueue.reasks",
        "chatqueue.endpoints",
        "chatqueue.speed",
        "body.messages",
        "body.temperature",
    ]
    assert [fault.field for fault in refused(envelope(chatqueue=7))] == ["chatqueue"]


def test_a_bare_body_with_options_is_told_to_use_the_envelope() -> None:
    faults = refused(b'{"chatqueue": {}, ' + BODY.encode()[1:])
    assert [fault.field for fault in faults] == ["custom_id", "method", "url", "body"]
