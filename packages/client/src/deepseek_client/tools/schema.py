"""JSON schemas in the strict form that servers can hold a model to.

Strict means: every object names all its properties, requires each and allows no other; no value is untyped. What a
server need not know to write such JSON (lengths, other formats, titles) is left out of the schema and still checked
when the answer is read.
Source: DeepSeek's guide to tool calls, "strict mode", and OpenAI's to structured outputs: what both accept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

Schema = dict[str, Any]

_FORMATS = frozenset({"email", "hostname", "ipv4", "ipv6", "uuid"})
_NOTES = frozenset({"title", "default", "examples", "$schema", "discriminator", "readOnly", "writeOnly", "deprecated"})
_LIMITS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties"})
_TYPING = frozenset({"type", "enum", "const", "anyOf", "$ref"})
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class StrictSchema:
    """A schema, and why no server can be held to it.

    Attributes:
        schema: the strict form; the plain one where there is none.
        obstacles: what has no strict form, as `items.meta: any key is allowed`; empty if nothing.
    """

    schema: Schema
    obstacles: tuple[str, ...]

    @property
    def is_strict(self) -> bool:
        """Whether a server may be asked to hold the model to it."""
        return not self.obstacles


def strict_schema(schema: Mapping[str, Any], *, keeps_limits: bool = False) -> StrictSchema:
    """The strict form of a JSON schema, such as `TypeAdapter(...).json_schema()` gives.

    References are written out where they are used, but for those of types that hold themselves.

    Args:
        schema: the plain form.
        keeps_limits: whether lengths of texts and lists stay: engines that write by grammar follow them, DeepSeek's
            strict tools refuse them.
    """
    given = dict(schema)
    definitions = cast("dict[str, Schema]", given.pop("$defs", {}))
    walk = _Walk(definitions, _recursive(definitions), _NOTES if keeps_limits else _NOTES | _LIMITS)
    strict = walk.of(given, "")
    if walk.obstacles:
        return StrictSchema(dict(schema), tuple(dict.fromkeys(walk.obstacles)))
    kept = {name: walk.of(definitions[name], name) for name in definitions if name in walk.recursive}
    return StrictSchema({**strict, "$defs": kept} if kept else strict, ())


class _Walk:
    def __init__(self, definitions: Mapping[str, Schema], recursive: frozenset[str], dropped: frozenset[str]) -> None:
        self.definitions = definitions
        self.dropped = dropped
        self.recursive = recursive
        self.obstacles: list[str] = []

    def of(self, schema: Schema, place: str) -> Schema:
        if place.count(".") > _MAX_DEPTH:
            return self._obstacle(place, "it is nested too deeply")
        name = _referred(schema)
        if name is not None and name not in self.recursive and name in self.definitions:
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            return self.of({**self.definitions[name], **beside}, place)
        merged = self._merged(schema)
        result = {key: value for key, value in merged.items() if key not in self.dropped}
        if result.get("format") not in _FORMATS:
            result.pop("format", None)
        if "type" in result and isinstance(result["type"], list):
            kinds = cast("list[str]", result.pop("type"))
            result = {"anyOf": [{**result, "type": kind} for kind in kinds]}
        if not result.keys() & _TYPING:
            return self._obstacle(place, "it has no type")
        for key, build in (("anyOf", self._each), ("properties", self._object), ("items", self._items)):
            if key in result:
                build(result, place)
        if result.get("type") == "object" and "properties" not in result:
            self._object({**result, "properties": {}}, place)
            if not self.obstacles:
                result |= {"properties": {}, "required": [], "additionalProperties": False}
        if "prefixItems" in result:
            return self._obstacle(place, "its items have a type each")
        if result.get("type") == "array" and "items" not in result:
            return self._obstacle(place, "its items have no type")
        return result

    def _merged(self, schema: Schema) -> Schema:
        """Without `allOf` of one, and with `oneOf` as the `anyOf` that servers know."""
        merged = dict(schema)
        if len(parts := cast("list[Schema]", merged.get("allOf", []))) == 1:
            del merged["allOf"]
            merged = {**parts[0], **merged}
            if _referred(merged) is not None:
                name = cast("str", _referred(merged))
                if name in self.definitions and name not in self.recursive:
                    del merged["$ref"]
                    merged = {**self.definitions[name], **merged}
        if "oneOf" in merged:
            merged["anyOf"] = merged.pop("oneOf")
        return merged

    def _each(self, result: Schema, place: str) -> None:
        options = cast("list[Schema]", result["anyOf"])
        result["anyOf"] = [
            self.of(option, f"{place}.anyOf[{at}]" if place else f"anyOf[{at}]") for at, option in enumerate(options)
        ]

    def _items(self, result: Schema, place: str) -> None:
        result["items"] = self.of(cast("Schema", result["items"]), f"{place}.items" if place else "items")

    def _object(self, result: Schema, place: str) -> None:
        if result.get("additionalProperties", False) is not False or "patternProperties" in result:
            self._obstacle(place, "any key is allowed")
            return
        properties = cast("dict[str, Schema]", result["properties"])
        result["properties"] = {
            name: self.of(part, f"{place}.{name}" if place else name) for name, part in properties.items()
        }
        result["required"] = list(properties)
        result["additionalProperties"] = False

    def _obstacle(self, place: str, reason: str) -> Schema:
        self.obstacles.append(f"{place or 'the whole'}: {reason}")
        return {}


def _referred(schema: Mapping[str, Any]) -> str | None:
    reference = schema.get("$ref")
    return reference.removeprefix("#/$defs/") if isinstance(reference, str) else None


def _recursive(definitions: Mapping[str, Schema]) -> frozenset[str]:
    """Names of the definitions that reach themselves."""
    direct = {name: set(_references(schema)) for name, schema in definitions.items()}

    def reaches(start: str) -> bool:
        seen: set[str] = set()
        waiting = list(direct[start])
        while waiting:
            name = waiting.pop()
            if name == start:
                return True
            if name not in seen:
                seen.add(name)
                waiting.extend(direct.get(name, ()))
        return False

    return frozenset(name for name in definitions if reaches(name))


def _references(value: object) -> list[str]:
    found: list[str] = []

    def visit(value: object) -> None:
        if isinstance(value, dict):
            schema = cast("Schema", value)
            name = _referred(schema)
            if name is not None:
                found.append(name)
            for part in schema.values():
                visit(part)
        elif isinstance(value, list):
            for part in cast("list[object]", value):
                visit(part)

    visit(value)
    return found
