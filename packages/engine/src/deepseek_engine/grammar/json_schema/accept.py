"""Whether a value satisfies a flat schema: for `enum` beside other keywords, and for the names of properties."""

import re
from typing import Any, Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_schema.merge import ANY_OF, ONE_OF, canonical, types_of
from deepseek_engine.grammar.json_schema.resolve import Schema

_OF_STRINGS: Final = frozenset({"minLength", "maxLength", "pattern", "format"})
_OF_NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


def accepts(flat: Schema, value: Any) -> bool:
    """Whether the value satisfies the schema.

    Raises:
        GrammarError: that depends on keywords that are not looked at here.
    """
    types = types_of(flat)
    kind = _type_of(value)
    if kind not in types and not (kind == "integer" and "number" in types):
        return False
    if "enum" in flat and canonical(value) not in {canonical(each) for each in flat["enum"]}:
        return False
    if isinstance(value, dict | list) or ANY_OF in flat or ONE_OF in flat:
        others = sorted(key.strip("_") for key in flat.keys() - {"type", "enum"} - _OF_STRINGS - _OF_NUMBERS)
        if others:
            raise GrammarError(f"enum beside {others[0]} is not supported: write one of them")
        return True
    if isinstance(value, str):
        return _accepts_string(flat, value)
    return kind not in ("number", "integer") or _accepts_number(flat, value)


def _accepts_string(flat: Schema, value: str) -> bool:
    if not flat.get("minLength", 0) <= len(value) <= flat.get("maxLength", len(value)):
        return False
    return "pattern" not in flat or re.search(flat["pattern"], value) is not None


def _accepts_number(flat: Schema, value: float) -> bool:
    if "multipleOf" in flat and value % flat["multipleOf"] != 0:
        return False
    return (
        flat.get("minimum", value) <= value <= flat.get("maximum", value)
        and ("exclusiveMinimum" not in flat or value > flat["exclusiveMinimum"])
        and ("exclusiveMaximum" not in flat or value < flat["exclusiveMaximum"])
    )


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    for kind, name in ((float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"
