"""Whether no value satisfies two schemas: `oneOf` means exactly one, which a grammar can promise for such schemas."""

from typing import Any, cast

from deepseek_engine.grammar.json_schema.merge import ANY_OF, ONE_OF, canonical, flatten, types_of
from deepseek_engine.grammar.json_schema.resolve import Resolver, Schema


def are_disjoint(one: Schema, other: Schema, resolver: Resolver) -> bool:
    """Whether that can be told from types, values, and properties that both require (a discriminator, say)."""
    first, second = _types(one), _types(other)
    if not first & second:
        return True
    if "enum" in one and "enum" in other:
        return not {canonical(each) for each in one["enum"]} & {canonical(each) for each in other["enum"]}
    if first & second <= {"object"}:
        return _objects_are_disjoint(one, other, resolver)
    return False


def _types(flat: Schema) -> set[str]:
    types = types_of(flat)
    return types | {"integer"} if "number" in types else types


def _objects_are_disjoint(one: Schema, other: Schema, resolver: Resolver) -> bool:
    """A property that both require and whose values differ, or one that one requires and the other forbids."""
    mine, yours = _properties(one), _properties(other)
    my_required, your_required = _required(one), _required(other)
    for name in my_required & your_required & mine.keys() & yours.keys():
        first, second = flatten(mine[name], resolver), flatten(yours[name], resolver)
        if not any(ANY_OF in flat or ONE_OF in flat for flat in (first, second)) and are_disjoint(
            first, second, resolver
        ):
            return True
    for required, opposite in ((my_required, other), (your_required, one)):
        is_closed = opposite.get("additionalProperties") is False and "patternProperties" not in opposite
        if is_closed and required - _properties(opposite).keys():
            return True
    return False


def _properties(flat: Schema) -> dict[str, Any]:
    return cast("dict[str, Any]", flat.get("properties", {}))


def _required(flat: Schema) -> set[str]:
    return set(flat.get("required", ()))
