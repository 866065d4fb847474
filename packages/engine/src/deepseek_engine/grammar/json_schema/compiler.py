"""SchemaCompiler: a JSON schema to the rules of a grammar."""

import math
from decimal import Decimal
from typing import Any, Final, cast

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_nodes import (
    ARRAY,
    BOOLEAN,
    INTEGER,
    NULL,
    NUMBER,
    VALUE,
    WS,
    json_array,
    json_literal,
    json_rules,
    members,
)
from deepseek_engine.grammar.json_schema.accept import accepts
from deepseek_engine.grammar.json_schema.disjoint import are_disjoint
from deepseek_engine.grammar.json_schema.merge import ANY_OF, ONE_OF, TYPES, both, flatten, intersect, types_of
from deepseek_engine.grammar.json_schema.objects import object_node
from deepseek_engine.grammar.json_schema.resolve import (
    Resolver,
    Schema,
    as_count,
    as_schema,
    as_schemas,
    without_annotations,
)
from deepseek_engine.grammar.json_schema.strings import check_repeats, string_node
from deepseek_engine.grammar.nodes import NEVER, Node, Ref, Repeat, alt, optional, seq, to_ebnf
from deepseek_engine.grammar.numbers import decimals_between, integers_between, multiples_between, multiples_rules

_KEYWORDS_OF: Final = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
               "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}  # fmt: skip
_REFUSED: Final = ("not", "if", "$dynamicRef", "$recursiveRef")


def schema_to_ebnf(schema: Any) -> str:
    """The grammar whose texts are JSON documents that the schema accepts.

    Args:
        schema: decoded JSON.

    Raises:
        GrammarError: it is wrong, too large, satisfied by nothing, or needs what a grammar cannot check; the message
            begins with the place.
    """
    compiler = SchemaCompiler(schema)
    text = to_ebnf(compiler.compile())
    if text is None:
        raise GrammarError("no JSON document satisfies the schema")
    return text


class SchemaCompiler:
    """Compiles one schema.

    Args:
        schema: decoded JSON.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = as_schema(schema)
        self._resolver = Resolver(schema)
        self._rules: dict[str, Node] = {}
        self._names: dict[str, Ref] = {}

    def compile(self) -> dict[str, Node]:
        """The rules; `root` is the document.

        Raises:
            GrammarError: as `schema_to_ebnf` does.
        """
        self._names["#"] = Ref("root")
        self._rules["root"] = NEVER  # first, so that it stays first
        self._rules["root"] = self._value(self._schema, "#")
        return {**self._rules, **json_rules()}

    def _value(self, schema: Any, path: str) -> Node:
        """The node of a subschema; `path` is for messages."""
        checked = as_schema(schema)
        if not isinstance(checked, bool) and set(without_annotations(checked)) == {"$ref"}:
            return self._reference(checked["$ref"], path)
        try:
            flat = flatten(checked, self._resolver)
        except GrammarError as error:
            raise _at(path, error) from error
        return self._flat(flat, path)

    def _reference(self, reference: Any, path: str) -> Node:
        """A rule for what is referred to, made once: schemas may refer to themselves."""
        try:
            target = self._resolver.resolve(reference)
        except GrammarError as error:
            raise _at(path, error) from error
        if reference not in self._names:
            self._names[reference] = self._add_rule("ref", NEVER)
            self._rules[self._names[reference].name] = self._value(target, reference)
        return self._names[reference]

    def _flat(self, flat: Schema, path: str) -> Node:
        self._resolver.count_step()
        try:
            _check_supported(flat)
            if flat.get(ANY_OF) or flat.get(ONE_OF):
                return self._alternatives(flat, path)
            if "enum" in flat:
                return alt(*(json_literal(value) for value in flat["enum"] if accepts(flat, value)))
            return self._typed(flat, path)
        except _PlacedError:
            raise
        except GrammarError as error:
            raise _at(path, error) from error

    def _alternatives(self, flat: Schema, path: str) -> Node:
        """One list of alternatives, each intersected with the rest, which may have more lists."""
        keyword = ANY_OF if flat.get(ANY_OF) else ONE_OF
        lists = cast("list[list[Any]]", flat[keyword])
        rest = {key: value for key, value in flat.items() if key != keyword}
        if lists[1:]:
            rest[keyword] = lists[1:]
        branches = [intersect(rest, flatten(branch, self._resolver)) for branch in lists[0]]
        if keyword == ONE_OF:
            self._check_apart(lists[0])
        name = keyword.strip("_")
        return alt(*(self._flat(branch, f"{path}/{name}/{index}") for index, branch in enumerate(branches)))

    def _check_apart(self, branches: list[Any]) -> None:
        flats = [flatten(branch, self._resolver) for branch in branches]
        for index, one in enumerate(flats):
            for offset, other in enumerate(flats[index + 1 :], start=index + 1):
                self._resolver.count_step()
                if not are_disjoint(one, other, self._resolver):
                    raise GrammarError(
                        f"oneOf: a value could satisfy both {index} and {offset}, which a grammar cannot rule out: "
                        "use anyOf, or give each a type or a required constant of its own"
                    )

    def _typed(self, flat: Schema, path: str) -> Node:
        """By type. Without one, keywords say which types are meant: `properties` an object, `minLength` a string."""
        types = types_of(flat)
        if "type" not in flat:
            meant = {kind for kind, keywords in _KEYWORDS_OF.items() if keywords & flat.keys()}
            if not meant:
                return VALUE
            types = meant
        if "number" in types:
            types.discard("integer")
        nodes = [self._of_type(kind, flat, path) for kind in TYPES if kind in types]
        return nodes[0] if len(nodes) == 1 else alt(*nodes)

    def _of_type(self, kind: str, flat: Schema, path: str) -> Node:
        match kind:
            case "object":
                return object_node(
                    flat,
                    lambda schema, name: self._value(schema, f"{path}/{name}"),
                    lambda names: self._key(names, path),
                    self._add_rule,
                )
            case "array":
                return self._array(flat, path)
            case "string":
                return string_node(flat)
            case "integer" | "number":
                return self._number(flat, is_integer=kind == "integer")
            case "boolean":
                return BOOLEAN
            case _:
                return NULL

    def _key(self, names: Any, path: str) -> Node:
        """Keys are strings that satisfy `propertyNames`."""
        return self._value(both(names, {"type": "string"}), f"{path}/propertyNames")

    def _array(self, flat: Schema, path: str) -> Node:
        low = check_repeats(as_count(flat.get("minItems", 0), "minItems"), "minItems")
        high = flat.get("maxItems")
        high = None if high is None else check_repeats(as_count(high, "maxItems"), "maxItems")
        if "contains" in flat and (flat.get("minContains", 1) != 0 or "maxContains" in flat):
            raise GrammarError("contains is not supported")
        if flat.get("uniqueItems") and (high is None or high > 1):
            raise GrammarError("uniqueItems is not supported: a grammar cannot remember what it has seen")
        if high is not None and low > high:
            return NEVER
        first = as_schemas(flat["prefixItems"], "prefixItems") if flat.get("prefixItems") else []
        rest = flat.get("items", True)
        if not first:
            if rest is True and (low, high) == (0, None):
                return ARRAY
            item = self._add_rule("item", self._value(rest, f"{path}/items"))
            return json_array(members(item, low, high))
        return json_array(self._tuple(first, rest, low, high, path))

    def _tuple(self, first: list[Schema | bool], rest: Any, low: int, high: int | None, path: str) -> Node:
        """Items with schemas of their own, then any number of others."""
        items = [
            self._add_rule("item", self._value(schema, f"{path}/prefixItems/{index}"))
            for index, schema in enumerate(first)
        ][:high]
        more: Node = seq()
        if high is None or high > len(items):
            after = seq(",", WS, self._add_rule("item", self._value(rest, f"{path}/items")))
            # What `items` does not restrict is not written behind what is listed, unless it is asked for.
            most = (max(low - len(items), 0) if rest is True else None) if high is None else high - len(items)
            more = Repeat(after, max(low - len(items), 0), most)
        node = more
        for index in reversed(range(1, len(items))):
            node = seq(",", WS, items[index], node)
            node = node if index < low else optional(node)
        node = seq(items[0], node)
        return node if low else optional(node)

    def _number(self, flat: Schema, *, is_integer: bool) -> Node:
        bounds = {key: _number_value(flat[key], key) for key in _KEYWORDS_OF["number"] if key in flat}
        factor = bounds.pop("multipleOf", None)
        if factor is not None and (factor <= 0 or factor != int(factor)):
            raise GrammarError(f"multipleOf={flat['multipleOf']}: only whole numbers from 1 on are supported")
        low, above = _tighter(bounds.get("minimum"), bounds.get("exclusiveMinimum"), max)
        high, below = _tighter(bounds.get("maximum"), bounds.get("exclusiveMaximum"), min)
        if is_integer or factor is not None:
            first = None if low is None else math.floor(low) + 1 if above else math.ceil(low)
            last = None if high is None else math.ceil(high) - 1 if below else math.floor(high)
            return self._integer(first, last, 1 if factor is None else int(factor))
        if low is None and high is None:
            return NUMBER
        return decimals_between(low, high, above=above, below=below)

    def _integer(self, low: int | None, high: int | None, factor: int) -> Node:
        if factor == 1:
            return INTEGER if low is None and high is None else integers_between(low, high)
        listed = multiples_between(factor, low, high)
        if listed is not None:
            return listed
        rules = multiples_rules(factor, f"multiple_{factor}")
        is_open = (low is None or low in (0, 1)) and high is None
        if rules is None or not is_open:
            raise GrammarError(f"multipleOf={factor} is supported up to 64, or with a minimum and a maximum")
        self._rules |= rules
        if low == 1:
            self._rules[f"multiple_{factor}"] = alt(*cast("Any", rules[f"multiple_{factor}"]).options[1:])
        return Ref(f"multiple_{factor}")

    def _add_rule(self, what: str, node: Node) -> Ref:
        name = f"{what}{len(self._rules)}"
        self._rules[name] = node
        return Ref(name)


def _check_supported(flat: Schema) -> None:
    for keyword in _REFUSED:
        if keyword in flat and not (keyword == "if" and not {"then", "else"} & flat.keys()):
            raise GrammarError(f"{keyword} is not supported")


class _PlacedError(GrammarError):
    """One whose message says where."""


def _at(path: str, error: GrammarError) -> GrammarError:
    return error if isinstance(error, _PlacedError) else _PlacedError(f"{path}: {error}")


def _number_value(value: Any, keyword: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GrammarError(f"{keyword}={value!r} must be a number")
    return Decimal(repr(value))


def _tighter(included: Decimal | None, excluded: Decimal | None, choose: Any) -> tuple[Decimal | None, bool]:
    """The bound that restricts more, and whether it is left out itself."""
    if included is None or excluded is None:
        return (excluded, True) if included is None and excluded is not None else (included, False)
    tight = choose(included, excluded)
    return tight, tight == excluded
