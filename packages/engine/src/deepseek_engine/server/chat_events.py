"""A parser's events as the wire's message and deltas."""

import secrets
import string
from collections.abc import Sequence
from typing import Any, Final

from deepseek_engine.text_parsers.events import (
    ContentText,
    Event,
    ReasoningText,
    ToolArguments,
    ToolCallStart,
    join_events,
)

_ALPHANUMERIC: Final = string.ascii_letters + string.digits
_SHORT_ID_CHARS: Final = 9
"""Mistral's templates refuse ids of another length."""


def new_call_id(*, is_short: bool) -> str:
    """An id for a tool call."""
    if is_short:
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(_SHORT_ID_CHARS))
    return f"call_{secrets.token_hex(12)}"


def delta_of(events: Sequence[Event], *, is_short: bool) -> dict[str, Any]:
    """What the events of one step add to a message: `content`, `reasoning_content`, `tool_calls`."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        match event:
            case ContentText(text):
                delta["content"] = delta.get("content", "") + text
            case ReasoningText(text):
                delta["reasoning_content"] = delta.get("reasoning_content", "") + text
            case ToolCallStart(index, name):
                calls[index] = {
                    "index": index,
                    "id": new_call_id(is_short=is_short),
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
            case ToolArguments(index, text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
            case _:
                pass  # an end is seen in the finish reason, a dropped call in its arguments, which never parse
    if calls:
        delta["tool_calls"] = list(calls.values())
    return delta


def message_of(events: Sequence[Event], *, is_short: bool) -> dict[str, Any]:
    """The whole message; `content` is null where a call says it all, as OpenAI has it."""
    parsed = join_events(list(events))
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    if parsed.tool_calls:
        message["content"] = parsed.content or None
        message["tool_calls"] = [
            {
                "id": new_call_id(is_short=is_short),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in parsed.tool_calls
        ]
    return message
