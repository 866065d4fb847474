"""The `tools` and `tool_choice` of a request."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from deepseek_client.types import ChatCompletionRequest
from deepseek_engine.server.errors import ApiError, unsupported

MAX_TOOLS: Final = 128
MAX_TOOL_DEPTH: Final = 64
TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the model may call.

    Attributes:
        tools: those that it is told of, in OpenAI's form.
        choice: it may call them, or must.
        is_parallel: it may call several in one answer.
    """

    tools: tuple[dict[str, Any], ...] = ()
    choice: Literal["auto", "required"] = "auto"
    is_parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The tools' names."""
        return frozenset(tool["function"]["name"] for tool in self.tools)

    @property
    def strict(self) -> tuple[bool, ...]:
        """For each tool, whether its calls have to fit its schema whatever the model would like to write."""
        return tuple(tool["function"].get("strict") is True for tool in self.tools)


def read_tools(request: ChatCompletionRequest) -> ToolUse:
    """The request's tools: those that its `tool_choice` leaves.

    Raises:
        ApiError: 400, `param` names the field at fault.
    """
    tools = tuple(_checked(request.tools or ()))
    is_parallel = request.parallel_tool_calls is not False
    choice = request.tool_choice
    if choice is None or choice == "auto":
        return ToolUse(tools, is_parallel=is_parallel)
    if choice == "none":
        return ToolUse()
    if not tools:
        raise ApiError(400, "tool_choice needs tools", param="tool_choice")
    if choice == "required":
        return ToolUse(tools, "required", is_parallel)
    return ToolUse((_named(tools, choice),), "required", is_parallel=False)


def _checked(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(tools) > MAX_TOOLS:
        raise ApiError(400, f"tools has {len(tools)} entries: at most {MAX_TOOLS} are allowed", param="tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if tool.get("type") != "function":
            raise unsupported(f"{path}.type", f"{path}.type must be 'function': no other tools are supported")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise ApiError(400, f"{path}.function must be an object", param=f"{path}.function")
        name = _check_function(cast("dict[str, Any]", function), f"{path}.function")
        if name in names:
            raise ApiError(400, f"tool {name!r} is declared twice", param=f"{path}.function.name")
        names.add(name)
    return list(tools)


def _check_function(function: dict[str, Any], path: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or TOOL_NAME.fullmatch(name) is None:
        raise ApiError(
            400, "a name is 1 to 64 letters, digits, dots, dashes and underscores of ASCII", param=f"{path}.name"
        )
    for key, kind, what in (("description", str, "text"), ("parameters", dict, "a JSON schema object")):
        value = function.get(key)
        if value is not None and not isinstance(value, kind):
            raise ApiError(400, f"{key} must be {what}", param=f"{path}.{key}")
    if function.get("strict") not in (None, True, False):
        raise ApiError(400, "strict must be true or false", param=f"{path}.strict")
    if _is_deeper(function, MAX_TOOL_DEPTH):
        raise ApiError(400, f"nested deeper than {MAX_TOOL_DEPTH} levels", param=f"{path}.parameters")
    return name


def _is_deeper(value: Any, levels: int) -> bool:
    if not levels:
        return True
    inner: Sequence[Any] = ()
    if isinstance(value, dict):
        inner = list(cast("dict[str, Any]", value).values())
    elif isinstance(value, list):
        inner = cast("list[Any]", value)
    return any(_is_deeper(item, levels - 1) for item in inner)


def _named(tools: Sequence[dict[str, Any]], choice: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("function"), dict):
        name = cast("dict[str, Any]", choice["function"]).get("name")
        for tool in tools:
            if tool["function"]["name"] == name:
                return tool
        raise ApiError(400, f"tool_choice names {str(name)[:64]!r}, which tools does not declare", param="tool_choice")
    raise ApiError(
        400,
        'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}',
        param="tool_choice",
    )
