"""The loop that lets a model call tools until it answers, as a flow: no I/O, one text for both clients."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from deepseek_client.core import Core
from deepseek_client.effects import CallTools, Flow, ToolRequest
from deepseek_client.errors import ConfigurationError, ToolRoundsError
from deepseek_client.tools.tool import Tool, tool
from deepseek_client.types.chat import ChatCompletion, ChatMessage, ToolCall


@dataclass(frozen=True, slots=True)
class ToolRun:
    """What a model with tools came to.

    Attributes:
        completion: the last answer, which calls no tool.
        messages: the whole conversation, the answer included: what a next turn is appended to.
        rounds: how many answers it took.
    """

    completion: ChatCompletion
    messages: list[dict[str, Any]]
    rounds: int

    @property
    def text(self) -> str:
        """The text of the last answer."""
        return _text(self.completion.choices[0].message)


def run_tools(
    core: Core,
    messages: Iterable[ChatMessage | Mapping[str, Any]],
    tools: Iterable[Tool | Any],
    max_rounds: int,
    params: Mapping[str, Any],
    *,
    is_async: bool,
) -> Flow[ToolRun]:
    """Ask, call what the model asks for, tell it the results, and so on until it answers.

    The conversation keeps the model's reasoning, which DeepSeek wants back after a turn that called tools, and writes
    "" where a turn has no text, since servers refuse null there.

    Raises:
        DeepSeekError: a request failed; ToolRoundsError: there was no answer after `max_rounds`.
    """
    if max_rounds < 1:
        raise ConfigurationError(f"max_rounds={max_rounds} must be 1 or more")
    offered = _by_name(tools, is_async=is_async)
    history = [as_param(message) for message in messages]
    given = {**params, "tools": [each.to_param() for each in offered.values()]}
    if _insists(given.get("tool_choice")) and _thinks(given):
        warnings.warn("tool_choice is sent as auto: a thinking model is not made to call a tool", stacklevel=4)
        given["tool_choice"] = "auto"
    for rounds in range(1, max_rounds + 1):
        completion = yield from core.chat(history, given)
        message = completion.choices[0].message
        history.append(as_param(message))
        if not message.tool_calls:
            return ToolRun(completion, history, rounds)
        results: list[object] = yield CallTools([_request(offered, call) for call in message.tool_calls])
        for call, result in zip(message.tool_calls, results, strict=True):
            history.append({"role": "tool", "tool_call_id": call.id or "", "content": _as_text(result)})
        if _insists(given.get("tool_choice")):
            given["tool_choice"] = "auto"  # it has called one: the next answer may be the last
    error = ToolRoundsError(f"the model still calls tools after max_rounds={max_rounds} answers", messages=history)
    error.snapshot = completion  # pyright: ignore[reportPossiblyUnboundVariable]  max_rounds is at least 1
    raise error


def as_param(message: ChatMessage | Mapping[str, Any]) -> dict[str, Any]:
    """A message as a request takes it back, nothing lost: reasoning and tool calls too."""
    if not isinstance(message, ChatMessage):
        return dict(message)
    param = message.to_wire()
    for name in ("content", "reasoning_content", "tool_calls"):
        if param.get(name, ...) is None:
            del param[name]
    param.setdefault("content", "")
    for call in cast("list[dict[str, Any]]", param.get("tool_calls") or []):
        call.pop("index", None)
    return param


def _by_name(tools: Iterable[Tool | Any], *, is_async: bool) -> dict[str, Tool]:
    offered: dict[str, Tool] = {}
    for given in tools:
        each = given if isinstance(given, Tool) else tool(given)
        if each.name in offered:
            raise ConfigurationError(f"two tools have the name {each.name!r}")
        if each.is_async and not is_async:
            raise ConfigurationError(f"the tool {each.name} is a coroutine function: use AsyncDeepSeek")
        offered[each.name] = each
    if not offered:
        raise ConfigurationError("tools is empty: name at least one, or use create")
    return offered


def _request(offered: Mapping[str, Tool], call: ToolCall) -> ToolRequest:
    name = call.function.name or ""
    return ToolRequest(offered.get(name), name, call.function.arguments or "", tuple(offered))


def _insists(choice: object) -> bool:
    return choice is not None and choice not in ("auto", "none")


def _thinks(params: Mapping[str, Any]) -> bool:
    thinking = params.get("thinking")
    kind: object = cast("Mapping[str, Any]", thinking).get("type") if isinstance(thinking, Mapping) else None
    effort = params.get("reasoning_effort")
    return kind == "enabled" or (effort is not None and effort != "none")


def _as_text(result: object) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, BaseModel):
        return result.model_dump_json()
    return json.dumps(result, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(cast("Sequence[object]", value))
    return str(value)


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text or "" for part in message.content or ())
