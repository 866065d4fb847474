"""A stream of chat completions, as events."""

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from deepseek_client.events import (
    ChatEvent,
    ContentDelta,
    ContentDone,
    Finish,
    KeepAlive,
    ReasoningDelta,
    ReasoningDone,
    ToolCallDelta,
    ToolCallDone,
    UsageReport,
)
from deepseek_client.readings.base import Reading, SoFar
from deepseek_client.readings.chat import ChatReading, ChoiceParts
from deepseek_client.types.chat import ChatChunkChoice, ChatCompletion, ChatCompletionChunk, ToolCall

_REASONING, _CONTENT = -2, -1
"""The parts of a choice that are text; tool calls are known by their positions, from 0."""


@dataclass(slots=True)
class _Open:
    """The part of a choice that is being written, and where in the choice's pieces it began."""

    part: int
    start: int = 0


class EventReading(Reading[ChatEvent, ChatCompletion]):
    """Over a ChatReading: which part of which choice a chunk adds to, and which parts are whole.

    Args:
        expected_choices: as for every Reading.
        keep_alives: give an event for each comment of the server.
    """

    def __init__(self, expected_choices: int = 1, *, keep_alives: bool = False) -> None:
        super().__init__(expected_choices)
        self.inner = ChatReading(expected_choices)
        self._keep_alives = keep_alives
        self._open: dict[int, _Open] = {}

    @override
    def read(self, data: str) -> Sequence[ChatEvent]:
        chunk = self.inner.take(data)
        events: list[ChatEvent] = []
        for choice in chunk.choices:
            self._read_choice(choice, chunk, events)
        if chunk.usage is not None:
            self.usage = self.inner.usage
            events.append(UsageReport(self.usage or chunk.usage, chunk))
        return events

    @override
    def comment(self, text: str) -> Sequence[ChatEvent]:
        return (KeepAlive(text.strip()),) if self._keep_alives else ()

    @override
    def end(self) -> Sequence[ChatEvent]:
        events: list[ChatEvent] = []
        for index in sorted(self._open):
            self._finish_part(index, None, events)
        return events

    @property
    @override
    def origin(self) -> tuple[str, float | None]:
        return self.inner.origin

    @property
    @override
    def finish_reasons(self) -> dict[int, str]:
        return self.inner.finish_reasons

    @override
    def so_far(self) -> SoFar:
        return self.inner.so_far()

    @override
    def begin_part(self) -> None:
        self.inner.begin_part()

    @override
    def answer(self) -> ChatCompletion:
        return self.inner.answer()

    def _read_choice(self, choice: ChatChunkChoice, chunk: ChatCompletionChunk, events: list[ChatEvent]) -> None:
        delta, index = choice.delta, choice.index
        parts = self.inner.choices[index]
        if delta.reasoning_content:
            self._turn_to(_REASONING, len(parts.reasoning) - 1, index, chunk, events)
            events.append(ReasoningDelta(delta.reasoning_content, index, chunk))
        if delta.content:
            self._turn_to(_CONTENT, len(parts.content) - 1, index, chunk, events)
            events.append(ContentDelta(delta.content, index, chunk))
        for piece in delta.tool_calls or ():
            self._read_call(piece, parts, index, chunk, events)
        if choice.finish_reason:
            self._finish_part(index, chunk, events)
            events.append(Finish(choice.finish_reason, index, chunk))

    def _read_call(
        self, piece: ToolCall, parts: ChoiceParts, index: int, chunk: ChatCompletionChunk, events: list[ChatEvent]
    ) -> None:
        position = parts.position_of(piece)
        self._turn_to(position, 0, index, chunk, events)
        call = parts.tool_calls[position]
        events.append(ToolCallDelta(position, call.id, call.name, piece.function.arguments or "", index, chunk))

    def _turn_to(self, part: int, start: int, index: int, chunk: ChatCompletionChunk, events: list[ChatEvent]) -> None:
        """The choice writes this part now: another one that was open is whole."""
        current = self._open.get(index)
        if current is None or current.part != part:
            self._finish_part(index, chunk, events)
            self._open[index] = _Open(part, start)

    def _finish_part(self, index: int, chunk: ChatCompletionChunk | None, events: list[ChatEvent]) -> None:
        part = self._open.pop(index, None)
        if part is None:
            return
        parts = self.inner.choices[index]
        if part.part == _REASONING:
            events.append(ReasoningDone("".join(parts.reasoning[part.start :]), index, chunk))
        elif part.part == _CONTENT:
            events.append(ContentDone("".join(parts.content[part.start :]), index, chunk))
        else:
            events.append(ToolCallDone(part.part, parts.tool_calls[part.part].build(), index, chunk))
