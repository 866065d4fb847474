"""Wire messages to the turns that a chat encoder takes."""

import json
from collections.abc import Sequence
from typing import Any, Final

from deepseek_client.types import ChatMessage
from deepseek_client.types.chat import ToolCall
from deepseek_engine.server.errors import ApiError, unsupported
from deepseek_engine.server.limits import MAX_MESSAGES
from deepseek_engine.server.tools import MAX_TOOLS, TOOL_NAME

# Roles end up in the prompt's markup, so that only known ones may pass. OpenAI renamed `system` to `developer`.
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MAX_ID_CHARS: Final = 256


def plain_messages(messages: Sequence[ChatMessage]) -> tuple[list[dict[str, Any]], bool]:
    """Turns in OpenAI's form with text as content, and whether the answer continues the last one.

    Raises:
        ApiError: 400, `param` names the message and field at fault.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(
            400, f"messages has {len(messages)} entries: from 1 to {MAX_MESSAGES} are allowed", param="messages"
        )
    turns = [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    _check_tool_results(turns)
    *earlier, last = messages
    for index, message in enumerate(earlier):
        if message.prefix:
            raise ApiError(400, "prefix: only the last message can be continued", param=f"messages[{index}].prefix")
    if last.prefix and (last.role != "assistant" or last.tool_calls):
        raise ApiError(
            400,
            "prefix: only an assistant message without tool calls can be continued",
            param=f"messages[{len(earlier)}].prefix",
        )
    return turns, bool(last.prefix)


def num_chars(turns: Sequence[dict[str, Any]]) -> int:
    """About how much text the turns hold."""
    return sum(len(value) for turn in turns for value in turn.values() if isinstance(value, str))


def _plain_message(message: ChatMessage, path: str) -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        raise ApiError(
            400, f"role {message.role[:50]!r} is unknown: use one of {', '.join(_ROLES)}", param=f"{path}.role"
        )
    turn: dict[str, Any] = {"role": role, "content": _text(message, path)}
    if role == "tool":
        if not message.tool_call_id:
            raise ApiError(400, "a tool message needs the id of its call", param=f"{path}.tool_call_id")
        turn["tool_call_id"] = message.tool_call_id[:_MAX_ID_CHARS]
    if message.name is not None:
        turn["name"] = message.name
    if role != "assistant":
        if message.tool_calls:
            raise ApiError(400, f"a {role} message has no tool calls", param=f"{path}.tool_calls")
        return turn
    if message.reasoning_content:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["content"] = turn["content"] or None  # as templates ask: `content is none`
        turn["tool_calls"] = _tool_calls(message.tool_calls, f"{path}.tool_calls")
    return turn


def _text(message: ChatMessage, path: str) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant":
            return ""
        raise ApiError(400, f"a {message.role} message needs content", param=f"{path}.content")
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise unsupported(
                f"{path}.content[{index}]",
                f"content of type {part.type[:50]!r} is not supported: this model reads text",
            )
        parts.append(part.text)
    return "".join(parts)


def _tool_calls(calls: Sequence[ToolCall], path: str) -> list[dict[str, Any]]:
    if len(calls) > MAX_TOOLS:
        raise ApiError(400, f"{len(calls)} tool calls: at most {MAX_TOOLS} are allowed", param=path)
    return [_tool_call(call, f"{path}[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: ToolCall, path: str) -> dict[str, Any]:
    name, arguments = call.function.name or "", call.function.arguments or "{}"
    if TOOL_NAME.fullmatch(name) is None:
        raise ApiError(400, "a call needs the name of its function", param=f"{path}.function.name")
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ApiError(400, "arguments must be the text of a JSON object", param=f"{path}.function.arguments")
    function = {"name": name, "arguments": arguments}
    return {"id": (call.id or "")[:_MAX_ID_CHARS], "type": "function", "function": function}


def _check_tool_results(turns: Sequence[dict[str, Any]]) -> None:
    """Every tool message has to answer a call of the assistant message that it follows."""
    open_ids: set[str] = set()
    for index, turn in enumerate(turns):
        if turn["role"] != "tool":
            open_ids = {call["id"] for call in turn.get("tool_calls", ())}
        elif turn["tool_call_id"] not in open_ids:
            raise ApiError(
                400,
                f"no call {turn['tool_call_id'][:50]!r} is open here: a tool message answers a call of the assistant "
                "message before it",
                param=f"messages[{index}].tool_call_id",
            )
