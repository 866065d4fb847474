"""A stream of `/v1/responses`."""

from collections.abc import Sequence
from typing import Any, cast

from pydantic_core import from_json
from typing_extensions import override

from deepseek_client.readings.base import ErrorInChunkError, Reading
from deepseek_client.types.responses import (
    Response,
    ResponseArgumentsDelta,
    ResponseEvent,
    ResponseItem,
    ResponseItemEvent,
    ResponseLifecycleEvent,
    ResponsePart,
    ResponseReasoningDelta,
    ResponseTextDelta,
    response_event,
)


class ResponseReading(Reading[ResponseEvent, Response]):
    """A stream of events; its last one holds the whole answer, and no `[DONE]` follows."""

    def __init__(self) -> None:
        super().__init__()
        self._response = Response(id="", status="in_progress")
        self._items: dict[int, ResponseItem] = {}
        self._pieces: dict[tuple[int, str], list[str]] = {}

    @override
    def read(self, data: str) -> Sequence[ResponseEvent]:
        fields: Any = from_json(data)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")  # noqa: TRY004  the reader of streams knows ValueError
        known = cast("dict[str, Any]", fields)
        if known.get("type") in ("error", "response.failed"):
            raise ErrorInChunkError
        event = response_event(known)
        match event:
            case ResponseTextDelta():
                self._pieces.setdefault((event.output_index, "output_text"), []).append(event.delta)
            case ResponseReasoningDelta():
                self._pieces.setdefault((event.output_index, "reasoning_text"), []).append(event.delta)
            case ResponseArgumentsDelta():
                self._pieces.setdefault((event.output_index, "arguments"), []).append(event.delta)
            case ResponseItemEvent():
                self._items[event.output_index] = event.item
                if event.type.endswith(".done"):
                    self._pieces = {key: parts for key, parts in self._pieces.items() if key[0] != event.output_index}
            case ResponseLifecycleEvent():
                self._response = event.response
                if event.response.usage is not None:
                    self.usage = event.response.usage.to_usage()
                self.is_over = event.type in ("response.completed", "response.incomplete")
            case _:
                pass
        return (event,)

    @property
    @override
    def origin(self) -> tuple[str, float | None]:
        return self._response.model, self._response.created_at or None

    @property
    @override
    def finish_reasons(self) -> dict[int, str]:
        if not self.is_over:
            return {}
        details = self._response.incomplete_details
        return {0: (details.reason if details is not None else None) or self._response.status or "completed"}

    @override
    def answer(self) -> Response:
        if self.is_over:
            return self._response
        indices = sorted({*self._items, *(index for index, _ in self._pieces)})
        return self._response.model_copy(update={"output": [self._item(index) for index in indices]})

    def _item(self, index: int) -> ResponseItem:
        """An item as far as it has come."""
        kind_of = {"output_text": "message", "reasoning_text": "reasoning", "arguments": "function_call"}
        changes: dict[str, Any] = {}
        kind = "message"
        for (at, field), parts in self._pieces.items():
            if at != index:
                continue
            kind, text = kind_of[field], "".join(parts)
            changes = (
                {"arguments": text} if field == "arguments" else {"content": [ResponsePart(type=field, text=text)]}
            )
        return self._items.get(index, ResponseItem(type=kind)).model_copy(update=changes)
