"""The bodies and events of DeepSeek's dialect, as plain dicts to be changed at will."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

USAGE: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def generation(text: str = "Hello", finish_reason: str = "stop", **fields: object) -> dict[str, Any]:
    """The answer of `/v1/generate`."""
    return {
        "id": "gen-1",
        "object": "generation",
        "model": "m",
        "text": text,
        "finish_reason": finish_reason,
        "usage": USAGE,
    } | fields


def text_chunk(text: str, finish_reason: str | None = None, **fields: object) -> dict[str, Any]:
    """One event of a stream of `/v1/generate`."""
    return {
        "id": "gen-1",
        "object": "generation.chunk",
        "model": "m",
        "text": text,
        "finish_reason": finish_reason,
    } | fields


def completion(text: str = "Hello", finish_reason: str | None = "stop", **fields: object) -> dict[str, Any]:
    """The answer of `/v1/completions`; an event of its stream has the same shape."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]} | fields


def chat_completion(content: str | None = "Hello", finish_reason: str = "stop", **message: object) -> dict[str, Any]:
    """The answer of `/v1/chat/completions`; further names are fields of the message."""
    said = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": USAGE,
    }


def chat_chunk(
    content: str | None, finish_reason: str | None = None, index: int = 0, **delta: object
) -> dict[str, Any]:
    """One event of a streamed chat; further names are fields of the delta."""
    choice = {"index": index, "delta": {"content": content} | delta, "finish_reason": finish_reason}
    return {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def tool_call_list(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Names and arguments as a message's `tool_calls`."""
    return [
        {
            "index": number,
            "id": f"call_{number + 1}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(calls)
    ]
