"""Kept texts as JSON: the events of a stream put together, so that what is searched for personal data is whole."""

from collections.abc import Iterable
from typing import Any, cast

import orjson

from deepseek_gateway.audit.payload import Payload
from deepseek_gateway.guard.pii import mask_json
from deepseek_gateway.relay.frames import DONE_DATA, data_of

_JOINED = frozenset({"content", "reasoning_content", "text", "arguments", "refusal"})
"""Fields whose pieces are put together; of every other field the last value stands."""


def text_of(payload: Payload) -> bytes:
    """The JSON that is sealed: `{"request", "answer", "is_truncated"}`."""
    answer: Any = joined(payload.answer) if payload.is_stream else readable(b"".join(payload.answer))
    kept: dict[str, Any] = {"request": readable(payload.request), "answer": answer}
    if payload.policy.mask_pii:
        kept = mask_json(kept)
    return orjson.dumps({**kept, "is_truncated": payload.is_truncated})


def readable(data: bytes) -> Any:
    """JSON as it is; what is cut off in the middle as text."""
    try:
        return orjson.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def joined(frames: Iterable[bytes]) -> dict[str, Any]:
    """A stream's chunks put together as one answer."""
    answer: dict[str, Any] = {}
    for frame in frames:
        data = data_of(frame)
        if data is None or data == DONE_DATA:
            continue
        chunk = readable(data)
        if isinstance(chunk, dict):
            _add(answer, cast("dict[str, Any]", chunk))
    return answer


def _add(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        held = whole.get(name)
        if isinstance(value, dict) and isinstance(held, dict):
            _add(cast("dict[str, Any]", held), cast("dict[str, Any]", value))
        elif isinstance(value, list) and isinstance(held, list):
            _add_items(cast("list[Any]", held), cast("list[Any]", value))
        elif name in _JOINED and isinstance(value, str) and isinstance(held, str):
            whole[name] = held + value
        elif value is not None or held is None:
            whole[name] = value


def _add_items(whole: list[Any], parts: list[Any]) -> None:
    """Choices and tool calls, which say their place by `index`."""
    for part in parts:
        at = _index(part)
        same = None if at is None else next((item for item in whole if _index(item) == at), None)
        if same is None:
            whole.append(part)
        else:
            _add(same, part)


def _index(item: Any) -> int | None:
    return cast("dict[str, Any]", item).get("index") if isinstance(item, dict) else None
