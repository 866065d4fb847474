"""Events of an answer as JSON and as bytes, and what the word filter says of them."""

import json
from typing import Any, cast

import orjson

from deepseek_gateway.guard.fields import SIDECARS, Json, choices_of

REASON = "content_filter"
"""The finish_reason, the ledger's end_reason and the error code of what a word list stopped."""


def parsed(data: bytes) -> Json:
    """An event's JSON.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        value = orjson.loads(data)
    except ValueError:
        value = json.loads(data)  # takes half a surrogate pair, which some engines send
    if not isinstance(value, dict):
        raise ValueError("an event that is no JSON object")  # noqa: TRY004  a fault of the text, not of a type
    return cast("Json", value)


def encoded(event: Json) -> bytes:
    """An event's or a body's bytes."""
    try:
        return orjson.dumps(event)
    except TypeError:  # half a surrogate pair
        return json.dumps(event, separators=(",", ":")).encode()


def framed(event: Json) -> bytes:
    """A whole event of a stream."""
    return b"data: " + encoded(event) + b"\n\n"


def says_nothing(event: Json) -> bool:
    """Whether an event has lost all that it carried."""
    if event.get("usage") is not None:
        return False
    for part in choices_of(event):
        if part.get("finish_reason") is not None or any(part.get(name) is not None for name in SIDECARS):
            return False
        delta: Json = part.get("delta") or {}
        if part.get("text") or any(value for name, value in delta.items() if not _is_empty_call(name, value)):
            return False
    return bool(choices_of(event))


def _is_empty_call(name: str, value: Any) -> bool:
    """Whether tool calls in a delta add nothing: no name, no arguments, no id."""
    if name != "tool_calls" or not isinstance(value, list):
        return False
    calls = [cast("Json", call) for call in cast("list[Any]", value) if isinstance(call, dict)]
    functions = [cast("Json", call.get("function") or {}) for call in calls]
    return not any(call.get("id") for call in calls) and not any(any(function.values()) for function in functions)


def merged(first: Any, second: Any) -> Any:
    """Two sidecars of texts that follow each other: lists are joined, objects key by key."""
    if isinstance(first, dict) and isinstance(second, dict):
        one, two = cast("Json", first), cast("Json", second)
        return {**one, **{name: merged(one[name], two[name]) if name in one else two[name] for name in two}}
    if isinstance(first, list) and isinstance(second, list):
        return [*cast("list[Any]", first), *cast("list[Any]", second)]
    return cast("Any", first if second is None else second)
