"""Answers held against the `response_format` that their request asks for.

`worker.jobs.requests` has schemas checked here before anything is stored, `worker.execution` every
answer. Pure: a `$ref` is looked up in the schema itself and nowhere else. An answer is taken as it
is or not at all: nothing is repaired, and JSON in a fence of Markdown is no JSON.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, specification_with

from worker.jobs.outcomes import (
    NOT_JSON,
    SCHEMA_MISMATCH,
    Answer,
    ErrorClass,
    Failure,
    Phase,
)

MOST_ERRORS: Final = 10
MOST_CHARACTERS: Final = 1_500
"""The bounds of what is told of one answer. Its content is stored beside it in any case."""

SCHEMAS_KEPT: Final = 256
"""A file of many requests has few schemas."""

_ANY: Final = msgspec.Raw(b"{}")
# The libraries have no error of their own for a pointer that leads into a number, or to one.
_NOWHERE: Final = (Unresolvable, TypeError, AttributeError, ValueError)
_INAPPLICABLE: Final = (*_NOWHERE, re.error, RecursionError)

_CUTS: Final = {
    "length": "the answer was cut off at its limit of tokens",
    "content_filter": "the answer was cut off by the content filter",
}


class _Schema(msgspec.Struct):
    schema: msgspec.Raw = _ANY


class _Format(msgspec.Struct):
    type: str = "text"
    json_schema: _Schema | None = None

    @property
    def schema(self) -> bytes | None:
        """The JSON text of the schema; None where any object will do."""
        if self.type != "json_schema" or self.json_schema is None:
            return None
        return bytes(self.json_schema.schema)


class _Request(msgspec.Struct):
    response_format: _Format | None = None
    n: int | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]


_REQUEST: Final = msgspec.json.Decoder(_Request)
_REPLY: Final = msgspec.json.Decoder(_Reply)


class _NotJsonError(Exception):
    """The content is no JSON."""


# --- the answer -----------------------------------------------------------------------------------


def mismatch(body: str, answer: Answer) -> Failure | None:
    """Hold every choice of an answer against the request; None if nothing is wrong with it.

    A refusal is left alone, and so are tool calls without content. The failure keeps all that is
    known of the answer: its body, its tokens, and as `partial` the first content that does not fit.
    """
    if '"response_format"' not in body:
        return None
    request = _REQUEST.decode(body)
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    choices = _choices(answer, request.n or 1)
    for number, choice in enumerate(choices, 1):
        if (failure := _choice_failure(wanted, choice, answer)) is not None:
            return failure if len(choices) == 1 else _numbered(failure, number, len(choices))
    return None


def _choices(answer: Answer, asked: int) -> list[_Choice]:
    """List the choices; the body is read again only where more than one was asked for."""
    calls: list[Any] = list(answer.tool_calls)
    first = _Choice(_Message(answer.content, answer.refusal, calls), answer.finish_reason)
    if asked == 1:
        return [first]
    try:
        return [first, *_REPLY.decode(answer.body).choices[1:]]
    except (ValueError, RecursionError):
        return [first]


def _choice_failure(wanted: _Format, choice: _Choice, answer: Answer) -> Failure | None:
    message = choice.message
    content = message.content or ""
    if message.refusal or (message.tool_calls and not content):
        return None
    try:
        errors = _errors(wanted, _loaded(content))
        code, says = SCHEMA_MISMATCH, "the answer does not fit"
    except _NotJsonError as error:
        errors = [str(error)]
        code, says = NOT_JSON, "the answer is no JSON"
    if not errors:
        return None
    cut = _CUTS.get(choice.finish_reason or "")
    return _failure(code, _told(says, [cut, *errors] if cut else errors), content, answer)


def _failure(code: str, message: str, content: str, answer: Answer) -> Failure:
    return Failure(
        ErrorClass.PERMANENT,
        code,
        message,
        Phase.ANSWERING,
        status=answer.status,
        request_id=answer.request_id,
        body=answer.body,
        partial=_storable(content),
        usage=answer.usage,
    )


def _numbered(failure: Failure, number: int, count: int) -> Failure:
    message = f"choice {number} of {count}: {failure.message}"
    return replace(failure, message=message)


def _told(says: str, errors: Iterable[str]) -> str:
    text = _storable("; ".join((says, *errors)))
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def _storable(text: str) -> str:
    """PostgreSQL's text cannot hold U+0000."""
    return text.replace("\0", "\ufffd")


def _loaded(content: str) -> Any:
    """Read a content. Raises _NotJsonError, which says what is wrong and repeats nothing of it."""
    if not content.strip():
        raise _NotJsonError("it has no content")
    if content.lstrip().startswith("```"):
        raise _NotJsonError("it stands in a ``` fence, and must be bare")
    try:
        return msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:
        raise _NotJsonError(str(error)) from error


# --- the schema -----------------------------------------------------------------------------------


def _errors(wanted: _Format, value: Any) -> list[str]:
    """Say where a value does not fit, each place as a JSON path with its fault."""
    if (schema := wanted.schema) is None:
        return [] if isinstance(value, dict) else ["$: must be an object"]
    try:
        found = islice(_validator(schema).iter_errors(value), MOST_ERRORS)
        return [_error_text(error) for error in found]
    except _INAPPLICABLE as error:
        return [f"its schema cannot be applied: {_short(str(error))}"]


def _error_text(error: ValidationError) -> str:
    # Of an `anyOf` that nothing fits, the branch that came nearest says more than that none did.
    nearest = best_match([error]) or error
    return f"{_short(nearest.json_path)}: {_short(nearest.message)}"


def _short(text: str) -> str:
    """Cut the middle: jsonschema repeats the value first, and says last what is wrong with it."""
    return text if len(text) <= 200 else f"{text[:80]}…{text[-119:]}"


@lru_cache(maxsize=SCHEMAS_KEPT)
def _validator(schema: bytes) -> Validator:
    value = msgspec.json.decode(schema)
    return _draft(value)(value, registry=Registry())


def _draft(schema: Any) -> type[Validator]:
    """Choose the draft that a schema names, if it is one that we know."""
    named = schema.get("$schema") if isinstance(schema, dict) else None
    known = {"$schema": named} if isinstance(named, str) else {}
    draft: type[Validator] = validator_for(known, default=Draft202012Validator)
    return draft


def schema_faults(raw: bytes) -> tuple[tuple[str, str], ...]:
    """Check the schema in the JSON text of a request, if it has one. Never raises.

    Gives pairs: a field's dotted path into the body, and what is wrong with it.
    """
    if b'"response_format"' not in raw:
        return ()
    try:
        wanted = _REQUEST.decode(raw).response_format
    except (ValueError, RecursionError):
        return ()  # what is wrong with the rest of the body is told by its own rules
    schema = wanted.schema if wanted else None
    return () if schema is None else _faults_of(schema)


@lru_cache(maxsize=SCHEMAS_KEPT)
def _faults_of(schema: bytes) -> tuple[tuple[str, str], ...]:
    try:
        value = msgspec.json.decode(schema)
        if not isinstance(value, dict):
            return ()
        found = [*_broken_rules(value)] or [*_dangling(value)]
    except (ValueError, RecursionError) as error:
        found = [((), f"must be a JSON Schema: {_short(str(error))}")]
    return tuple((".".join((_FIELD, *map(str, path))), fault) for path, fault in found)


_FIELD: Final = "response_format.json_schema.schema"
_Place = tuple[tuple[str | int, ...], str]


def _broken_rules(schema: Any) -> Iterator[_Place]:
    """Hold a schema against the schema of schemas; patterns must be readable too."""
    draft = _draft(schema)
    rules = draft(draft.META_SCHEMA, format_checker=draft.FORMAT_CHECKER)
    for error in islice(rules.iter_errors(schema), MOST_ERRORS):
        yield tuple(error.absolute_path), f"must be a JSON Schema: {_short(error.message)}"


def _dangling(schema: dict[str, Any]) -> Iterator[_Place]:
    """Find every `$ref` that leads out of the schema, or nowhere."""
    specification = specification_with(schema.get("$schema", ""), default=DRAFT202012)
    resource = specification.create_resource(schema)
    resolver = Registry().resolver_with_root(resource)
    for reference in _unresolved(resource, resolver):
        yield (), f"has a $ref that leads nowhere in it: {_short(reference)}"


def _unresolved(resource: Resource[Any], resolver: Any) -> Iterator[str]:
    within = resolver.in_subresource(resource)
    reference = resource.contents.get("$ref") if isinstance(resource.contents, Mapping) else None
    if isinstance(reference, str):
        try:
            within.lookup(reference)
        except _NOWHERE:
            yield reference
    for part in resource.subresources():
        yield from _unresolved(part, within)


# --- asking again ---------------------------------------------------------------------------------


def reask_messages(content: str, errors: str) -> str:
    """Write what to show the model: its answer, and what is wrong with it. Gives a JSON array."""
    demand = (
        f"This cannot be used: {errors}.\n"
        "Answer again, with nothing but one JSON value that fits the required schema: "
        "no explanation, no Markdown."
    )
    messages = [{"role": "assistant", "content": content}, {"role": "user", "content": demand}]
    return msgspec.json.encode(messages).decode()
