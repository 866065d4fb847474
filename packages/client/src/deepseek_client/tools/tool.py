"""A Python function as a tool: its name, its description, the schema of its arguments, and the call itself."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from deepseek_client.errors import ConfigurationError, ToolArgumentsError
from deepseek_client.tools.schema import StrictSchema, strict_schema

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
