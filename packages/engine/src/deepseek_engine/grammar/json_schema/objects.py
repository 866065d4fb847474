"""Objects of a schema: properties in their order, required or not, and how many of them.

A grammar that is left to right meets each property once. `_Chain` has a rule for every property and, where the number
of properties matters, for every number so far.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_nodes import (
    STRING,
    WS,
    json_literal,
    json_member,
    json_object,
    json_string_of,
    members,
)
from deepseek_engine.grammar.json_schema.accept import accepts
from deepseek_engine.grammar.json_schema.resolve import Schema, as_count
from deepseek_engine.grammar.json_schema.strings import check_repeats
from deepseek_engine.grammar.nodes import EMPTY, NEVER, Chars, Node, Ref, Repeat, alt, seq
from deepseek_engine.grammar.regex import parse_regex

_MAX_CHAIN_RULES: Final = 4096
_MAX_KEY_CHARS: Final = 2048
"""Characters of all names together that a key beside them may not be."""

_REFUSED: Final = ("dependentRequired", "dependentSchemas", "dependencies")

AddRule = Callable[[str, Node], Ref]
ValueOf = Callable[[Any, str], Node]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the keywords say, put in order.

    Attributes:
        properties: name to the schema of its value, in order; the required ones are among them.
        extra: key and schema of what is written after them; None if nothing is.
        low, high: how many properties there are.
    """

    properties: dict[str, Any]
    required: frozenset[str]
    extra: tuple[Node, Any] | None
    low: int
    high: int | None


def object_node(flat: Schema, value_of: ValueOf, key_of: Callable[[Any], Node], add_rule: AddRule) -> Node:
    """The objects that a flat schema allows.

    Args:
        flat: the schema.
        value_of: makes the node of a property's schema; the string says which property.
        key_of: makes the node of the keys that `propertyNames` allows.
        add_rule: makes a rule of a node, and gives back the reference.

    Raises:
        GrammarError: a keyword is wrong or cannot be followed.
    """
    for keyword in _REFUSED:
        if flat.get(keyword):
            raise GrammarError(f"{keyword} is not supported")
    shape = _shape(flat, key_of, add_rule)
    if shape.high is not None and shape.low > shape.high:
        return NEVER
    extra = None
    if shape.extra is not None:
        key, schema = shape.extra
        extra = add_rule("entry", json_member(key, value_of(schema, "additionalProperties")))
    if not shape.properties:
        return json_object(EMPTY if extra is None and shape.low == 0 else _entries(extra, shape))
    pairs = [
        (add_rule("pair", json_member(json_literal(name), value_of(schema, name))), name in shape.required)
        for name, schema in shape.properties.items()
    ]
    return json_object(_Chain(pairs, extra, shape.low, shape.high, add_rule).start())


def _entries(extra: Node | None, shape: _Shape) -> Node:
    if extra is None:
        return NEVER
    if shape.low > 1:  # keys may repeat, and then there are fewer than were written
        raise GrammarError("minProperties over 1 is supported for named properties only")
    return members(extra, shape.low, shape.high)


def _shape(flat: Schema, key_of: Callable[[Any], Node], add_rule: AddRule) -> _Shape:
    properties = dict(object_fields(flat, "properties"))
    required = required_names(flat)
    rest = flat.get("additionalProperties")
    patterns = object_fields(flat, "patternProperties")
    if patterns and properties:
        _check_apart(properties, patterns)
    for name in required:
        if name not in properties:
            properties[name] = _schema_of_unnamed(name, patterns, rest)
    names = flat.get("propertyNames", True)
    if names is not True and names != {}:
        key = key_of(names)
        properties = {name: schema if _is_name(names, name) else False for name, schema in properties.items()}
    else:
        key = STRING
    low = check_repeats(as_count(flat.get("minProperties", 0), "minProperties"), "minProperties")
    high = flat.get("maxProperties")
    high = None if high is None else check_repeats(as_count(high, "maxProperties"), "maxProperties")
    return _Shape(properties, frozenset(required), _extra(properties, patterns, rest, key, add_rule), low, high)


def _extra(
    properties: dict[str, Any], patterns: dict[str, Any], rest: Any, key: Node, add_rule: AddRule
) -> tuple[Node, Any] | None:
    """Keys and values that the schema invites: by a pattern, by `additionalProperties`, or by saying nothing at all."""
    if patterns:
        if len(patterns) > 1:
            raise GrammarError("patternProperties with several patterns is not supported: a key could match two")
        if key is not STRING:
            raise GrammarError("patternProperties beside propertyNames is not supported")
        ((pattern, schema),) = patterns.items()
        return json_string_of(parse_regex(pattern)), schema
    if rest is None and not properties:
        rest = True
    if rest is None or rest is False:
        return None
    if not properties:
        return key, rest
    if key is not STRING or sum(map(len, properties)) > _MAX_KEY_CHARS:
        return None
    return _key_other_than(properties, add_rule), rest


def _schema_of_unnamed(name: str, patterns: dict[str, Any], rest: Any) -> Any:
    """What `required` names and `properties` does not."""
    for pattern in patterns:
        if accepts({"pattern": pattern}, name):
            return patterns[pattern]
    return True if rest is None else rest


def _check_apart(properties: Iterable[str], patterns: Iterable[str]) -> None:
    for pattern in patterns:
        parse_regex(pattern)  # refuses what Python reads otherwise
        for name in properties:
            if accepts({"pattern": pattern}, name):
                raise GrammarError(f"patternProperties: {pattern!r} matches the property {name!r} as well")


def _is_name(names: Any, name: str) -> bool:
    if isinstance(names, bool):
        return names
    return accepts(cast("Schema", names), name)


def object_fields(flat: Schema, keyword: str) -> dict[str, Any]:
    """The schemas by name that a keyword holds.

    Raises:
        GrammarError: it is no object.
    """
    value = flat.get(keyword, {})
    if not isinstance(value, dict):
        raise GrammarError(f"{keyword} must be an object")
    return cast("dict[str, Any]", value)


def required_names(flat: Schema) -> list[str]:
    """The names of `required`, each once.

    Raises:
        GrammarError: it is no list of names.
    """
    value = flat.get("required", [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in cast("list[Any]", value)):
        raise GrammarError("required must be a list of names")
    return list(dict.fromkeys(cast("list[str]", value)))


def _key_other_than(names: Iterable[str], add_rule: AddRule) -> Node:
    """A key that is none of these: a tree of their letters. It has no escapes, with which it could be one after all."""
    plain = ~Chars.of((0, 0x1F), '"\\')
    tail = add_rule("key_rest", seq(Repeat(plain, 0, None), '"'))
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for char in name:
            node = node.setdefault(char, {})
        node[""] = {}

    def other(node: dict[str, Any]) -> Node:
        children = {char: child for char, child in node.items() if char}
        elsewhere = seq(plain - Chars.of("".join(children)), tail)
        deeper = [seq(Chars.of(char) & plain, add_rule("key", other(child))) for char, child in children.items()]
        return alt(NEVER if "" in node else '"', elsewhere, *deeper)

    return seq('"', other(tree))


class _Chain:
    """The members of an object whose properties have names."""

    def __init__(
        self, pairs: list[tuple[Ref, bool]], extra: Node | None, low: int, high: int | None, add_rule: AddRule
    ) -> None:
        self._pairs = pairs
        self._extra = extra
        self._low, self._high = low, high
        self._add_rule = add_rule
        self._counts = low > 0 or high is not None
        self._done: dict[tuple[int, int], Node] = {}
        size = len(pairs) * ((high or low) + 1 if self._counts else 1)
        if size > _MAX_CHAIN_RULES:
            raise GrammarError("minProperties and maxProperties are too large for so many properties")

    def start(self) -> Node:
        """The members from the first property on, before anything is written."""
        # From the last to the first: a schema of a thousand properties is no thousand calls deep.
        begins: Node = self._only_extra()
        for index in reversed(range(len(self._pairs))):
            pair, is_required = self._pairs[index]
            rest = seq(pair, self._after(index + 1, 1))
            begins = rest if is_required else self._add_rule("first", alt(rest, begins))
        return begins

    def _only_extra(self) -> Node:
        nothing = EMPTY if self._low == 0 else NEVER
        if self._extra is None or self._high == 0:
            return nothing
        return alt(nothing, members(self._extra, 1, self._high)) if self._low <= 1 else nothing

    def _after(self, index: int, count: int) -> Node:
        """What may follow when `count` properties are written and those from `index` on are not."""
        if self._high is not None and count > self._high:
            return NEVER
        count = min(count, max(self._low, (self._high or 0))) if self._counts else 1
        for at in reversed(range(index, len(self._pairs) + 1)):
            for number in self._counts_at(at, index, count):
                if (at, number) not in self._done:
                    self._done[at, number] = self._make(at, number)
        return self._done[index, count]

    def _counts_at(self, at: int, index: int, count: int) -> Iterable[int]:
        if not self._counts:
            return (1,)
        return range(count, count + at - index + 1) if self._high is not None or count < self._low else (count,)

    def _make(self, index: int, count: int) -> Node:
        if self._high is not None and count > self._high:
            return NEVER
        if index == len(self._pairs):
            return self._end(count)
        pair, is_required = self._pairs[index]
        written = seq(",", WS, pair, self._next(index + 1, count + 1))
        skipped = NEVER if is_required else self._next(index + 1, count)
        return self._add_rule("rest", alt(written, skipped))

    def _next(self, index: int, count: int) -> Node:
        if not self._counts:
            count = 1
        elif self._high is None:
            count = min(count, self._low)
        return self._done.get((index, count), NEVER)

    def _end(self, count: int) -> Node:
        if self._extra is None:
            return EMPTY if count >= self._low else NEVER
        if count < self._low:  # keys may repeat, so that extra ones do not count
            return NEVER
        most = None if self._high is None else self._high - count
        return Repeat(seq(",", WS, self._extra), 0, most)
