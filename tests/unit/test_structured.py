import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.outcomes import (
    NOT_JSON,
    SCHEMA_MISMATCH,
    Answer,
    ErrorClass,
    Failure,
    Phase,
    ToolCall,
    Usage,
)
from worker.jobs.structured import (
    MOST_CHARACTERS,
    mismatch,
    reask_messages,
    schema_faults,
)

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "people": {"type": "integer", "minimum": 0},
        "rivers": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
USAGE = Usage(3, 0, 4, 0, 7)


def asking(schema: Any, **fields: Any) -> str:
    named = {"name": "city", "schema": schema, "strict": True}
    form = {"type": "json_schema", "json_schema": named}
    return json.dumps({"model": "m", "response_format": form, **fields})


OBJECT = json.dumps({"model": "m", "response_format": {"type": "json_object"}})


def said(content: str | None, **fields: Any) -> Answer:
    return Answer(content=content, **{"body": "{}", "finish_reason": "stop", **fields})


def choices(*contents: str) -> Answer:
    told = [{"index": n, "message": {"content": c}} for n, c in enumerate(contents)]
    return said(contents[0], body=json.dumps({"choices": told}))


def failed(body: str, answer: Answer) -> Failure:
    failure = mismatch(body, answer)
    assert failure is not None
    return failure


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (asking(CITY), said('{"name": "Ulm", "people": 130000, "rivers": ["Donau"]}')),
        (asking(CITY), said(' \n{"name": "Ulm"}\n')),
        (asking({}), said("7")),
        (asking(CITY, n=2), choices('{"name": "Ulm"}', '{"name": "Bonn"}')),
        (OBJECT, said("{}")),
        # nothing is asked for
        ('{"model": "m"}', said("words")),
        ('{"model": "m", "response_format": null}', said("words")),
        ('{"response_format": {"type": "text"}}', said("words")),
        # what was not said cannot be wrong
        (asking(CITY), said(None, refusal="I will not.")),
        (asking(CITY), said("", refusal="I will not.")),
        (asking(CITY), said(None, tool_calls=(ToolCall(0, "c", "f", "{}", True),))),  # noqa: FBT003
        # a limit that the answer just kept
        (asking(CITY), said('{"name": "Ulm"}', finish_reason="length")),
        # further choices that nobody can read
        (asking(CITY, n=2), said('{"name": "Ulm"}', body="{")),
    ],
)
def test_an_answer_that_fits_is_left_alone(body: str, answer: Answer) -> None:
    assert mismatch(body, answer) is None


@pytest.mark.parametrize(
    ("body", "answer", "code", "words"),
    [
        (asking(CITY), said("Ulm"), NOT_JSON, "malformed"),
        (asking(CITY), said('{"name": NaN}'), NOT_JSON, "invalid"),
        (asking(CITY), said(""), NOT_JSON, "it has no content"),
        (asking(CITY), said(None), NOT_JSON, "it has no content"),
        (asking(CITY), said('```json\n{"name": "Ulm"}\n```'), NOT_JSON, "fence"),
        (asking(CITY), said('{"name": "Ul', finish_reason="length"), NOT_JSON, "limit of tokens"),
        (
            asking(CITY),
            said('{"name": "', finish_reason="content_filter"),
            NOT_JSON,
            "content filter",
        ),
        (asking(CITY), said("[" * 100_000), NOT_JSON, "the answer is no JSON"),
        (asking(CITY), said("{}"), SCHEMA_MISMATCH, "$: 'name' is a required property"),
        (
            asking(CITY),
            said('{"name": "Ulm", "rivers": ["Donau", 7]}'),
            SCHEMA_MISMATCH,
            "$.rivers[1]: 7 is not of type 'string'",
        ),
        (
            asking({"anyOf": [{"type": "null"}, CITY]}),
            said('{"name": 7}'),
            SCHEMA_MISMATCH,
            "$.name: 7 is not of type 'string'",
        ),
        (
            asking({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}),
            said("7"),
            SCHEMA_MISMATCH,
            "'string'",
        ),
        # `items` with a list means other things in other drafts
        (
            asking({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "items": [{"type": "string"}],
            }),
            said("[7]"),
            SCHEMA_MISMATCH,
            "$[0]: 7",
        ),
        (asking({"$ref": "#/minimum", "minimum": 7}), said("7"), SCHEMA_MISMATCH, "be applied"),
        (asking({"$ref": "#"}), said("7"), SCHEMA_MISMATCH, "its schema cannot be applied"),
        (
            asking({"$ref": "https://example.com/schema"}),
            said("7"),
            SCHEMA_MISMATCH,
            "its schema cannot be applied",
        ),
        (OBJECT, said("[]"), SCHEMA_MISMATCH, "$: must be an object"),
        (OBJECT, said("yes"), NOT_JSON, "malformed"),
        (
            asking(CITY, n=3),
            choices('{"name": "Ulm"}', '{"name": 7}', "no"),
            SCHEMA_MISMATCH,
            "choice 2 of 3: the answer does not fit; $.name: 7",
        ),
    ],
)  # fmt: skip
def test_an_answer_that_does_not_fit_is_a_failure_that_says_why(
    body: str, answer: Answer, code: str, words: str
) -> None:
    failure = failed(body, answer)
    assert (failure.code, failure.error_class) == (code, ErrorClass.PERMANENT)
    assert failure.is_mismatch
    assert words in failure.message


def test_all_that_is_known_of_the_answer_is_kept() -> None:
    answer = said("words", body='{"id": "x"}', usage=USAGE, request_id="r-1", status=200)
    failure = failed(asking(CITY), answer)
    assert (failure.body, failure.partial, failure.usage) == ('{"id": "x"}', "words", USAGE)
    assert (failure.status, failure.request_id, failure.phase) == (200, "r-1", Phase.ANSWERING)
    # it is billed for certain, which is another thing than maybe
    assert not failure.maybe_billed


def test_the_content_of_the_choice_that_does_not_fit_is_kept() -> None:
    body = asking(CITY, n=2)
    assert failed(body, choices('{"name": "Ulm"}', "a\0b")).partial == "a\ufffdb"


def test_what_is_told_has_its_bounds() -> None:
    long = json.dumps({"name": "Ulm", "rivers": [["x" * 5_000]] * 50})
    message = failed(asking(CITY), said(long)).message
    assert len(message) <= MOST_CHARACTERS
    assert message.count("is not of type 'string'") > 3
    many = failed(asking(CITY), said(json.dumps({"name": 1, "rivers": [1] * 50}))).message
    assert many.count("; $") == 10


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text(
        st.characters(exclude_categories=["Cs"])), deeper, max_size=3),
    max_leaves=12,
)  # fmt: skip
contents = json_values.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]))


@given(contents)
def test_any_content_fits_or_is_told_to_fail_and_can_be_stored(content: str) -> None:
    failure = mismatch(asking(CITY), said(content))
    if failure is None:
        assert json.loads(content).keys() <= CITY["properties"].keys()  # type: ignore[attr-defined]
    else:
        assert failure.message
        assert "\0" not in failure.message + (failure.partial or "")
        assert len(failure.message) <= MOST_CHARACTERS


@given(json_values)
def test_a_value_always_fits_a_schema_that_names_it(value: Any) -> None:
    content = json.dumps(value)
    assert mismatch(asking({"enum": [value]}), said(content)) is None


# --- the schema -----------------------------------------------------------------------------------

FIELD = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        CITY,
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}},
        {"$ref": "#/definitions/a", "definitions": {"a": {}}},
        {"$id": "https://example.com/a", "$ref": "#x", "$defs": {"b": {"$anchor": "x"}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}]},
        {"$schema": "https://example.com/a-draft-of-tomorrow", "type": "object"},
        # a property may have any name
        {"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "nowhere"}]},
    ],
)
def test_a_schema_of_any_known_draft_is_taken(schema: Any) -> None:
    assert schema_faults(asking(schema).encode()) == ()


@pytest.mark.parametrize(
    ("schema", "field", "words"),
    [
        ({"type": "objekt"}, f"{FIELD}.type", "'objekt'"),
        (
            {"properties": {"a": {"required": True}}},
            f"{FIELD}.properties.a.required",
            "not of type 'array'",
        ),
        ({"pattern": "("}, f"{FIELD}.pattern", "regex"),
        ({"$schema": 5}, f"{FIELD}.$schema", "not of type 'string'"),
        ({"items": {"$ref": "#/$defs/b"}, "$defs": {"a": {}}}, FIELD, "nowhere in it: #/$defs/b"),
        ({"$ref": "https://example.com/a"}, FIELD, "nowhere in it: https://example.com/a"),
        ({"$ref": "http://["}, FIELD, "nowhere in it: http://["),
        ({"$ref": "#/minimum/x", "minimum": 7}, FIELD, "nowhere in it: #/minimum/x"),
    ],
)
def test_a_fault_of_a_schema_is_named_with_its_field(schema: Any, field: str, words: str) -> None:
    ((at, fault),) = schema_faults(asking(schema).encode())
    assert at == field
    assert words in fault


def test_several_faults_of_a_schema_are_named_at_once() -> None:
    faults = schema_faults(asking({"type": "a", "minimum": "b", "enum": 7}).encode())
    assert {field.rpartition(".")[2] for field, _ in faults} == {"type", "minimum", "enum"}


@given(st.dictionaries(st.sampled_from(
    ["$ref", "$schema", "$id", "type", "items", "$defs", "pattern", "properties", "required"]
), json_values))  # fmt: skip
def test_any_object_is_a_schema_or_has_faults_and_then_can_be_applied(schema: Any) -> None:
    body = asking(schema)
    if not schema_faults(body.encode()):
        mismatch(body, said('{"a": [1, "b"]}'))


@pytest.mark.parametrize(
    "raw", ["", "{}", '{"response_format": 3}', '{"response_format": {"json_schema": []}}', OBJECT]
)
def test_what_has_no_schema_has_no_faults_of_one(raw: str) -> None:
    assert schema_faults(raw.encode()) == ()


# --- asking again ---------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_model_is_shown_its_answer_and_what_is_wrong_with_it(content: str) -> None:
    shown, demand = json.loads(reask_messages(content, "$.name: 7 is not of type 'string'"))
    assert shown == {"role": "assistant", "content": content}
    assert demand["role"] == "user"
    assert "$.name: 7 is not of type 'string'" in demand["content"]
    assert "nothing but one JSON value" in demand["content"]
