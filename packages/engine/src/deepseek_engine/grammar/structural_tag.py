"""Structural tags: free text with parts that follow grammars, in xgrammar's language and in OpenAI's older one.

The schemas and patterns within are compiled by our own compilers, as everywhere, and the library gets grammars.
"""

import json
from collections.abc import Callable
from typing import Any, Final, cast

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.describe import (
    check_grammar_size,
    check_size,
    ebnf_source,
    json_schema_source,
    regex_source,
)
from deepseek_engine.grammar.limits import MAX_CHOICES, MAX_NESTING, MAX_REPEATS
from deepseek_engine.grammar.source import GrammarSource

Fields = dict[str, Any]

_WHAT: Final = "the structural tag"


def structural_tag_source(tag: Any) -> GrammarSource:
    """Answers that a structural tag describes.

    Args:
        tag: `{"type": "structural_tag", "format": …}`, or with `structures` and `triggers`; decoded JSON, or its text.

    Raises:
        GrammarError: it is none, is too large, or has a part that cannot be followed.
    """
    if isinstance(tag, str):
        check_size(tag, _WHAT)
        try:
            tag = json.loads(tag)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"{_WHAT} is not JSON: {error}") from error
    fields = _object(tag, _WHAT)
    check_size(json.dumps(fields), _WHAT)
    if fields.get("type", "structural_tag") != "structural_tag":
        raise GrammarError(f"type={fields['type']!r} must be structural_tag")
    answer = _Reader().read(fields["format"] if "format" in fields else _from_structures(fields), "format", 1)
    return GrammarSource("structural_tag", check_grammar_size(json.dumps({"type": "structural_tag", "format": answer})))


def _from_structures(fields: Fields) -> Fields:
    """The older form: `structures` with `begin`, `schema` and `end`, and the `triggers` that they begin with."""
    structures = fields.get("structures")
    if not isinstance(structures, list):
        raise GrammarError("format is missing: it holds the structural tag")
    tags: list[Fields] = []
    for index, structure in enumerate(cast("list[Any]", structures)):
        own = _object(structure, f"structures[{index}]")
        content = {"type": "json_schema", "json_schema": own.get("schema", {})}
        tags.append({"type": "tag", "begin": own.get("begin"), "content": content, "end": own.get("end")})
    return {"type": "triggered_tags", "triggers": fields.get("triggers"), "tags": tags}


class _Reader:
    """Reads formats and gives back what the library is to see: known fields only, schemas as grammars."""

    def __init__(self) -> None:
        self._count = 0

    def read(self, value: Any, path: str, depth: int) -> Fields:
        """One format with those in it.

        Raises:
            GrammarError: it is wrong; the message names the place.
        """
        self._count += 1
        if depth > MAX_NESTING or self._count > MAX_CHOICES:
            raise GrammarError(f"it has more than {MAX_CHOICES} parts, or is nested deeper than {MAX_NESTING}")
        fields = _object(value, path)
        kind = fields.get("type")
        if kind in _LEAVES:
            try:
                return _LEAVES[kind](fields, path)
            except GrammarError as error:
                raise GrammarError(f"{path}: {error}") from error
        if kind in ("sequence", "or"):
            return {"type": kind, "elements": self._list(fields, "elements", path, depth)}
        if kind == "tag":
            return self._tag(fields, path, depth)
        if kind in ("triggered_tags", "tags_with_separator"):
            return self._tags(kind, fields, path, depth)
        if kind in ("optional", "plus", "star", "repeat"):
            content = self.read(fields.get("content"), f"{path}.content", depth + 1)
            return {"type": kind, "content": content, **(_bounds(fields, path) if kind == "repeat" else {})}
        known = ", ".join([*_LEAVES, "sequence", "or", "tag", "triggered_tags", "tags_with_separator", "optional",
                           "plus", "star", "repeat"])  # fmt: skip
        raise GrammarError(f"{path}.type={kind!r}: use one of {known}")

    def _tag(self, fields: Fields, path: str, depth: int) -> Fields:
        if fields.get("type") != "tag":
            raise GrammarError(f"{path}.type must be tag")
        end = fields.get("end")
        ends = _texts(end, f"{path}.end") if isinstance(end, list) else _text(end, f"{path}.end")
        content = self.read(fields.get("content"), f"{path}.content", depth + 1)
        return {"type": "tag", "begin": _text(fields.get("begin"), f"{path}.begin"), "content": content, "end": ends}

    def _tags(self, kind: str, fields: Fields, path: str, depth: int) -> Fields:
        given = fields.get("tags")
        if not isinstance(given, list) or not given:
            raise GrammarError(f"{path}.tags must be a list that is not empty")
        tags: list[Fields] = []
        for index, tag in enumerate(cast("list[Any]", given)):
            self._count += 1
            where = f"{path}.tags[{index}]"
            tags.append(self._tag(_object(tag, where), where, depth + 1))
        flags = {key: _flag(fields.get(key, False), f"{path}.{key}") for key in ("at_least_one", "stop_after_first")}
        if kind == "tags_with_separator":
            return {
                "type": kind,
                "tags": tags,
                "separator": _text(fields.get("separator"), f"{path}.separator"),
                **flags,
            }
        triggers = _texts(fields.get("triggers"), f"{path}.triggers")
        for tag in tags:
            if sum(tag["begin"].startswith(trigger) for trigger in triggers) != 1:
                raise GrammarError(f"{path}: exactly one trigger has to be what {tag['begin']!r} begins with")
        excludes = _texts(fields.get("excludes", []), f"{path}.excludes", may_be_empty=True)
        return {"type": kind, "triggers": triggers, "tags": tags, "excludes": excludes, **flags}

    def _list(self, fields: Fields, key: str, path: str, depth: int) -> list[Fields]:
        given = fields.get(key)
        if not isinstance(given, list) or not given:
            raise GrammarError(f"{path}.{key} must be a list that is not empty")
        return [self.read(each, f"{path}.{key}[{i}]", depth + 1) for i, each in enumerate(cast("list[Any]", given))]


def _json_schema(fields: Fields, path: str) -> Fields:
    if fields.get("style", "json") != "json":
        raise GrammarError(f"style={fields['style']!r} is not supported: use json")
    schema = fields.get("json_schema")
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"{path}.json_schema must be a JSON schema")
    return _grammar(json_schema_source(schema))


def _any_text(fields: Fields, path: str) -> Fields:
    excludes = _texts(fields.get("excludes", []), f"{path}.excludes", may_be_empty=True)
    return {"type": "any_text", "excludes": excludes}


def _grammar(source: GrammarSource) -> Fields:
    return {"type": "grammar", "grammar": source.text}


_LEAVES: Final[dict[Any, Callable[[Fields, str], Fields]]] = {
    "const_string": lambda fields, path: {"type": "const_string", "value": _text(fields.get("value"), f"{path}.value")},
    "json_schema": _json_schema,
    "regex": lambda fields, path: _grammar(regex_source(_text(fields.get("pattern"), f"{path}.pattern"))),
    "grammar": lambda fields, path: _grammar(ebnf_source(_text(fields.get("grammar"), f"{path}.grammar"))),
    "any_text": _any_text,
}


def _bounds(fields: Fields, path: str) -> Fields:
    low, high = _number(fields.get("min"), path), _number(fields.get("max"), path)
    if low < 0 or (high != -1 and high < low):
        raise GrammarError(f"{path}: min={low} and max={high} leave nothing")
    return {"min": low, "max": high}


def _number(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= MAX_REPEATS:
        raise GrammarError(f"{path}: min and max must be whole numbers up to {MAX_REPEATS}, max -1 for no end")
    return value


def _object(value: Any, path: str) -> Fields:
    if not isinstance(value, dict):
        raise GrammarError(f"{path} must be a JSON object")
    return cast("Fields", value)


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise GrammarError(f"{path} must be a string")
    return value


def _texts(value: Any, path: str, *, may_be_empty: bool = False) -> list[str]:
    if not isinstance(value, list) or not (value or may_be_empty):
        raise GrammarError(f"{path} must be a list of strings that is not empty")
    texts = [_text(each, path) for each in cast("list[Any]", value)]
    if not all(texts):
        raise GrammarError(f"{path} has an empty string")
    return texts


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise GrammarError(f"{path} must be true or false")
    return value
