"""Flat schemas: one level without `allOf` and `$ref`, which are intersected with what stands beside them.

Alternatives stay: a flat schema has them under ANY_OF and ONE_OF, each a list of lists, as an intersection may have
several of both.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final, cast

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_schema.resolve import Resolver, Schema, as_schema, as_schemas, without_annotations

ANY_OF: Final = "__anyOf"
ONE_OF: Final = "__oneOf"
TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_MAX_CHAIN: Final = 64

_NOTHING: Final[Schema] = {"enum": []}


def flatten(schema: Schema | bool, resolver: Resolver, depth: int = 0) -> Schema:
    """The flat form; `{"enum": []}` is what nothing satisfies.

    Raises:
        GrammarError: it is wrong, or its parts cannot be intersected.
    """
    resolver.count_step()
    if isinstance(schema, bool):
        return {} if schema else dict(_NOTHING)
    if depth > _MAX_CHAIN:
        raise GrammarError("a chain of $ref and allOf is too long, or leads back to itself")
    rest = _normalise(without_annotations(schema))
    parts: list[Schema | bool] = []
    if "$ref" in rest:
        parts.append(as_schema(resolver.resolve(rest.pop("$ref"))))
    if "allOf" in rest:
        parts += as_schemas(rest.pop("allOf"), "allOf")
    for keyword, internal in (("anyOf", ANY_OF), ("oneOf", ONE_OF)):
        if keyword in rest:
            rest[internal] = [as_schemas(rest.pop(keyword), keyword)]
    for part in parts:
        rest = intersect(rest, flatten(part, resolver, depth + 1))
    return rest


def intersect(one: Schema, other: Schema) -> Schema:
    """A flat schema that is satisfied by what satisfies both.

    Raises:
        GrammarError: two keywords cannot be one.
    """
    if not one or not other:
        return dict(one or other)
    merged = {key: value for key, value in (*one.items(), *other.items()) if key not in _TOGETHER}
    for key, merge in _MERGES.items():
        if key in one and key in other:
            merged[key] = merge(one[key], other[key])
    unknown = [key for key in one if key in other and key not in _MERGES and key not in _TOGETHER]
    for key in unknown:
        if one[key] != other[key]:
            raise GrammarError(f"{key} is there twice, with different values, which cannot be made one")
    merged |= _merged_properties(one, other)
    merged |= _merged_items(one, other)
    return merged


def both(one: Any, other: Any) -> Any:
    """Two subschemas as one; `allOf` is dissolved when it is flattened."""
    if one is True or one == {} or one == other:
        return other
    return one if other is True or other == {} else {"allOf": [one, other]}


def types_of(flat: Schema) -> set[str]:
    """The types that `type` allows; all if it is not there.

    Raises:
        GrammarError: `type` is wrong.
    """
    given = flat.get("type", list(TYPES))
    names = cast("list[Any]", given) if isinstance(given, list) else [given]
    for name in names:
        if name not in TYPES:
            raise GrammarError(f"type={name!r}: the types of JSON Schema are {', '.join(TYPES)}")
    return set(names)


def _normalise(schema: Schema) -> Schema:
    """One spelling for what has several: of `const`, of draft 7's `items` list, of `unevaluated...`."""
    schema = dict(schema)
    if "const" in schema:
        if "enum" in schema:
            schema["enum"] = _common_values(schema["enum"], [schema["const"]])
        else:
            schema["enum"] = [schema["const"]]
        del schema["const"]
    if not isinstance(schema.get("enum", []), list):
        raise GrammarError("enum must be a list")
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema["additionalItems"]
    schema.pop("additionalItems", None)
    # Nothing that another part of the schema does not name is ever written, unless it is invited.
    for keyword, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if keyword in schema:
            schema.setdefault(plain, schema[keyword])
            del schema[keyword]
    return schema


def _merged_properties(one: Schema, other: Schema) -> Schema:
    keywords = ("properties", "additionalProperties", "patternProperties")
    if not any(key in one for key in keywords) or not any(key in other for key in keywords):
        return {key: each[key] for each in (one, other) for key in keywords if key in each}
    if "patternProperties" in one or "patternProperties" in other:
        raise GrammarError("patternProperties cannot be combined with other properties by allOf or $ref")
    merged: Schema = {}
    mine, yours = cast("Schema", one.get("properties", {})), cast("Schema", other.get("properties", {}))
    my_rest, your_rest = one.get("additionalProperties", True), other.get("additionalProperties", True)
    if mine or yours:
        names = dict.fromkeys((*mine, *yours))
        merged["properties"] = {name: both(mine.get(name, my_rest), yours.get(name, your_rest)) for name in names}
    if "additionalProperties" in one or "additionalProperties" in other:
        merged["additionalProperties"] = both(my_rest, your_rest)
    return merged


def _merged_items(one: Schema, other: Schema) -> Schema:
    merged: Schema = {}
    mine, yours = cast("list[Any]", one.get("prefixItems", [])), cast("list[Any]", other.get("prefixItems", []))
    my_rest, your_rest = one.get("items", True), other.get("items", True)
    if mine or yours:
        merged["prefixItems"] = [
            both(mine[i] if i < len(mine) else my_rest, yours[i] if i < len(yours) else your_rest)
            for i in range(max(len(mine), len(yours)))
        ]
    if "items" in one or "items" in other:
        merged["items"] = both(my_rest, your_rest)
    return merged


def _common_types(one: Any, other: Any) -> list[str]:
    first, second = types_of({"type": one}), types_of({"type": other})
    for each, opposite in ((first, second), (second, first)):
        if "number" in each and "integer" in opposite:
            each.add("integer")
    return [name for name in TYPES if name in first & second]


def _common_values(one: Any, other: Any) -> list[Any]:
    texts = {canonical(value) for value in other}
    return [value for value in one if canonical(value) in texts]


def canonical(value: Any) -> str:
    """Equal for values that JSON Schema takes for equal: 1 and 1.0, objects in any order of their keys."""
    return json.dumps(_plain_numbers(value), sort_keys=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain_numbers(each) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _plain_numbers(each) for key, each in cast("Schema", value).items()}
    return value


def _multiple(one: Any, other: Any) -> Any:
    if isinstance(one, int) and isinstance(other, int):
        return math.lcm(one, other)
    raise GrammarError("multipleOf cannot be combined unless both are whole numbers")


def _joined(one: list[Any], other: list[Any]) -> list[Any]:
    return [*one, *other]


def _required(one: Any, other: Any) -> list[Any]:
    return list(dict.fromkeys((*one, *other)))


def _first(one: Any, other: Any) -> Any:  # noqa: ARG001 - formats are annotations: one of them is kept to
    return one


_MERGES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "type": _common_types,
    "enum": _common_values,
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "minProperties": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
    "maxProperties": min,
    "multipleOf": _multiple,
    "required": _required,
    "propertyNames": both,
    "format": _first,
    ANY_OF: _joined,
    ONE_OF: _joined,
}
_TOGETHER: Final = frozenset({"properties", "additionalProperties", "patternProperties", "prefixItems", "items"})
