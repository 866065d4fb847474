"""A Python function as a tool: its name, its description, the schema of its arguments, and the call itself.

Schemas are JSON schemas in the strict form that servers can hold a model to: every object names all its properties,
requires each and allows no other; no value is untyped. What a server need not know to write such JSON (lengths, other
formats, titles) is left out of the schema and still checked when the answer is read.
Source: DeepSeek's guide to tool calls, "strict mode", and OpenAI's to structured outputs: what both accept.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from deepseek_client.errors import ConfigurationError, ToolArgumentsError

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


_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARGUMENT_LINE = re.compile(r"^\s{2,}(\w+)(?:\s*\([^)]*\))?:\s*(.+)$")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask for. Made by `tool`; it can still be called as the function it was.

    Attributes:
        name: letters, digits, `_` and `-`, 64 at most.
        description: what the model is told of it.
        parameters: the JSON schema of its arguments.
        obstacles: why the model cannot be held to that schema; empty if it can.
        function: what is called.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    obstacles: tuple[str, ...]
    function: Callable[..., Any] = field(repr=False)
    _arguments: type[BaseModel] = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself."""
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def is_strict(self) -> bool:
        """Whether servers are asked to hold the model to the schema."""
        return not self.obstacles

    def to_param(self) -> dict[str, Any]:
        """An entry of a request's `tools`."""
        function: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        if self.is_strict:
            function["strict"] = True
        return {"type": "function", "function": function}

    def bind(self, arguments: str) -> dict[str, Any]:
        """The arguments that a model wrote, as values of the types that the function declares.

        Raises:
            ToolArgumentsError: they are no JSON object, or do not fit.
        """
        try:
            model = self._arguments.model_validate_json(arguments.strip() or "{}")
        except ValidationError as error:
            faults = "; ".join(_fault(fault) for fault in error.errors(include_url=False, include_input=False)[:5])
            raise ToolArgumentsError(f"the arguments of {self.name} do not fit: {faults}") from error
        return {name: getattr(model, name) for name in model.model_fields_set}


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, strict: bool = True
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    strict: bool = True,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool: `@tool`, or `@tool(name="...")`, above it.

    Types come from the annotations, the description from the docstring's first paragraph, and those of arguments from
    its `Args:` (or from `Annotated[..., Field(description=...)]`).

    Args:
        function: what is called; a coroutine function too, with AsyncDeepSeek.
        name: another name than the function's.
        description: another description than the docstring's.
        strict: whether servers are asked to hold the model to the schema, where that is possible: `Tool.obstacles`
            says what keeps them from it.

    Raises:
        ConfigurationError: the name cannot be one, or an argument has no type or cannot be given by name.
    """

    def make(function: Callable[..., Any]) -> Tool:
        return _make(function, name, description, strict=strict)

    return make if function is None else make(function)


def _make(function: Callable[..., Any], name: str | None, description: str | None, *, strict: bool) -> Tool:
    name = name or function.__name__
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(f"tool name {name!r} must be 1 to 64 letters, digits, _ or -")
    summary, of_arguments = _read_docstring(inspect.getdoc(function) or "")
    arguments = _arguments_model(function, name, of_arguments)
    plain = arguments.model_json_schema()
    plain.pop("title", None)
    found = strict_schema(plain) if strict else StrictSchema(plain, ("strict=False",))
    return Tool(name, description or summary or name, found.schema, found.obstacles, function, arguments)


def _arguments_model(function: Callable[..., Any], name: str, descriptions: Mapping[str, str]) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(f"tool {name}: the argument {parameter} cannot be given by name")
        if parameter.name not in hints:
            raise ConfigurationError(f"tool {name}: the argument {parameter.name} has no type annotation")
        if parameter.name.startswith("_"):
            raise ConfigurationError(f"tool {name}: the argument {parameter.name} must not begin with _")
        default = ... if parameter.default is parameter.empty else parameter.default
        about = descriptions.get(parameter.name)
        fields[parameter.name] = (hints[parameter.name], Field(default, description=about) if about else default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    return create_model(f"{name}_arguments", __config__=config, **fields)


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what `Args:` says of each argument."""
    summary = " ".join(text.split("\n\n", 1)[0].split())
    arguments: dict[str, str] = {}
    _, found, rest = text.partition("Args:\n")
    current: str | None = None
    for line in rest.splitlines() if found else ():
        if line.strip() and not line.startswith(" "):
            break
        match = _ARGUMENT_LINE.match(line)
        if match is not None and len(line) - len(line.lstrip()) <= 4:
            current = str(match[1])
            arguments[current] = match[2].strip()
        elif current is not None and line.strip():
            arguments[current] += f" {line.strip()}"
    return summary, arguments


def _fault(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(step) for step in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
