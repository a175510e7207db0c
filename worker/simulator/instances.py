"""Makes a small JSON value that satisfies a JSON Schema: arguments of tools, structured answers.

Called by `worker.simulator.answers`. Deterministic from a random source that is handed in. Knows
what function schemas use; `pattern`, `not`, `if` and conditions between fields are not looked at.
"""

import math
from collections.abc import Mapping
from random import Random
from typing import Any, Final

Schema = Mapping[str, Any]

_DEEP: Final = 6
"""From here on optional things are left out, so that recursive schemas end."""

_FORMATS: Final[Mapping[str, str]] = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "email": "ada@example.com",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "ipv4": "192.0.2.1",
    "hostname": "example.com",
}
_WORDS: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")


def instance(schema: Any, random: Random) -> Any:
    """Give a value for `schema` (`true` and `{}` allow any)."""
    return _Maker(schema if isinstance(schema, Mapping) else {}, random).make(schema, 0)


class _Maker:
    """One root schema, to which `$ref` points."""

    def __init__(self, root: Schema, random: Random) -> None:
        self._root = root
        self._random = random

    def make(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, Mapping):
            return self._string({})
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._random.choice(schema["enum"])
        return self._of_type(_type_of(schema), schema, depth)

    def _of_type(self, kind: str, schema: Schema, depth: int) -> Any:
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "number" | "integer":
                return _number(schema, self._random, whole=kind == "integer")
            case "boolean":
                return self._random.random() < 0.5
            case "null":
                return None
            case _:
                return self._string(schema)

    def _resolved(self, schema: Schema, depth: int) -> Schema:
        """Follow `$ref`, take one of `anyOf`/`oneOf`, and lay `allOf` together."""
        for _ in range(32):  # a chain of references that is longer leads round in a circle
            if "$ref" in schema:
                schema = {**self._find(schema["$ref"]), **_without(schema, "$ref")}
            elif options := schema.get("anyOf") or schema.get("oneOf"):
                rest = _without(schema, "anyOf", "oneOf")
                schema = {**rest, **_choose(options, depth)}
            elif "allOf" in schema:
                schema = self._merged(schema, depth)
            else:
                return schema
        return {}

    def _merged(self, schema: Schema, depth: int) -> Schema:
        parts = [self._resolved(part, depth) for part in schema["allOf"]]
        whole = dict(_without(schema, "allOf"))
        for part in parts:
            properties = {**whole.get("properties", {}), **part.get("properties", {})}
            required = [*whole.get("required", ()), *part.get("required", ())]
            whole = {**whole, **part}
            if properties:
                whole |= {"properties": properties, "required": required}
        return whole

    def _find(self, reference: str) -> Schema:
        found: Any = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name, {}) if name and isinstance(found, Mapping) else found
        return found if isinstance(found, Mapping) else {}

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = dict.fromkeys(schema.get("required", ()))
        return {name: self.make(properties.get(name, {}), depth + 1) for name in required}

    def _array(self, schema: Schema, depth: int) -> list[Any]:
        first = list(schema.get("prefixItems", ()))
        count = max(schema.get("minItems", 0), len(first), int(depth < _DEEP))
        count = min(count, schema.get("maxItems", count))
        rest = [schema.get("items", {})] * (count - len(first))
        return [self.make(item, depth + 1) for item in (first + rest)[:count]]

    def _string(self, schema: Schema) -> str:
        text = _FORMATS.get(schema.get("format", "")) or self._random.choice(_WORDS)
        text = text.ljust(schema.get("minLength", 0), "x")
        return text[: schema.get("maxLength", len(text))]


def _without(schema: Schema, *names: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name not in names}


def _type_of(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind)


def _choose(options: list[Any], depth: int) -> Schema:
    """Prefer null deep down, and anything else above."""
    schemas = [option for option in options if isinstance(option, Mapping)]
    wanted = [option for option in schemas if (option.get("type") == "null") == (depth >= _DEEP)]
    return next(iter(wanted or schemas), {})


def _number(schema: Schema, random: Random, *, whole: bool) -> float:
    """Give one of the first ten multiples of `multipleOf` in range, or the middle of the range."""
    step = schema.get("multipleOf", 1)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    most = min(_given(schema.get("maximum"), below), default=math.inf)
    least = max(_given(schema.get("minimum"), above), default=0 if most > 0 else most - step)
    first = math.ceil(least / step)
    first += first * step == above
    last = first + 9 if most == math.inf else min(first + 9, math.floor(most / step))
    last -= last * step == below
    if first > last:
        return (least + most) / 2
    chosen = random.randint(first, last) * step
    return int(chosen) if whole else chosen


def _given(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]
