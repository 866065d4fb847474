"""A talk with everything that a chat can hold, for tests of the dialects that are translated from it."""

from typing import Any


def call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    """A delta of a tool call: with a name its beginning, else more of its arguments."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": ""}
    head = {} if name is None else {"id": f"call_{index}", "type": "function"}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


TALK = [
    {"reasoning_content": "let me "},
    {"reasoning_content": "see"},
    {"content": "I look "},
    {"content": "it up. 日本"},
    call(0, "", "weather"),
    call(0, '{"city": '),
    call(0, '"Paris"}'),
    call(1, "", "weather"),
    call(1, '{"city": "Rome"}'),
]
"""Reasoning, text, and two tool calls."""


def script(**fake: Any) -> dict[str, Any]:
    """What the makers' packages take to tell the fake engine what to do."""
    return {"extra_body": {"fake": fake}}
