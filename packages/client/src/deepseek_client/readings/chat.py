"""A chat's stream: its chunks as they are, or as typed events."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
from deepseek_client.types.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChoiceLogprobs,
    FunctionCall,
    TokenLogprob,
    ToolCall,
)


@dataclass(slots=True)
class ToolCallParts:
    """A tool call, as far as it has arrived."""

    id: str | None = None
    type: str | None = None
    name: str | None = None
    arguments: list[str] = field(default_factory=list[str])

    def add(self, piece: ToolCall) -> None:
        """Take the next piece."""
        self.id = piece.id or self.id
        self.type = piece.type or self.type
        self.name = piece.function.name or self.name
        if piece.function.arguments:
            self.arguments.append(piece.function.arguments)

    def build(self) -> ToolCall:
        """The call."""
        function = FunctionCall(name=self.name, arguments="".join(self.arguments))
        return ToolCall(id=self.id, type=self.type or "function", function=function)


@dataclass(slots=True)
class ChoiceParts:
    """A choice, as far as it has arrived."""

    role: str = "assistant"
    content: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])
    tool_calls: dict[int, ToolCallParts] = field(default_factory=dict[int, ToolCallParts])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def position_of(self, piece: ToolCall) -> int:
        """Which of the calls a piece belongs to: the one it names, or the last."""
        return piece.index if piece.index is not None else max(len(self.tool_calls) - 1, 0)

    def add(self, choice: ChatChunkChoice) -> None:
        """Take the choice's part of a chunk."""
        delta = choice.delta
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning_content:
            self.reasoning.append(delta.reasoning_content)
        if delta.role:
            self.role = delta.role
        for piece in delta.tool_calls or ():
            self.tool_calls.setdefault(self.position_of(piece), ToolCallParts()).add(piece)
        if choice.token_ids:
            self.token_ids += choice.token_ids
        if choice.logprobs is not None and choice.logprobs.content:
            self.logprobs += choice.logprobs.content

    def build(self, index: int, finish_reason: str | None) -> ChatChoice:
        """The choice."""
        calls = [self.tool_calls[position].build() for position in sorted(self.tool_calls)]
        content = "".join(self.content)
        message = ChatMessage(role=self.role, content=content)
        if self.reasoning:
            message.reasoning_content = "".join(self.reasoning)
        if calls:
            message.tool_calls = calls
        return ChatChoice(
            index=index,
            message=message,
            finish_reason=finish_reason,
            logprobs=ChoiceLogprobs(content=self.logprobs) if self.logprobs else None,
            token_ids=self.token_ids or None,
        )


class ChatReading(Reading[ChatCompletionChunk, ChatCompletion]):
    """A stream of chat completions: the chunks themselves out."""

    def __init__(self, expected_choices: int = 1) -> None:
        super().__init__(expected_choices)
        self.choices: dict[int, ChoiceParts] = {}
        self._finish_reasons: dict[int, str] = {}

    @override
    def read(self, data: str) -> Sequence[ChatCompletionChunk]:
        return (self.take(data),)

    def take(self, data: str) -> ChatCompletionChunk:
        """As `read`; each event is one chunk."""
        chunk = ChatCompletionChunk.model_validate_json(data)
        self._note(chunk)
        for choice in chunk.choices:
            parts = self.choices.get(choice.index)
            if parts is None:
                parts = self.choices[choice.index] = ChoiceParts()
            parts.add(choice)
            if choice.finish_reason:
                self._finish_reasons[choice.index] = choice.finish_reason
        return chunk

    @property
    @override
    def finish_reasons(self) -> dict[int, str]:
        return self._finish_reasons

    @override
    def so_far(self) -> SoFar:
        parts = self.choices.get(0) or ChoiceParts()
        pieces = len(parts.content) + len(parts.reasoning)
        num_tokens = self._num_tokens(pieces, len(parts.token_ids))
        return SoFar("".join(parts.content), "".join(parts.reasoning), bool(parts.tool_calls), num_tokens)

    @override
    def answer(self) -> ChatCompletion:
        choices = [self.choices[index].build(index, self._finish_reasons.get(index)) for index in sorted(self.choices)]
        return ChatCompletion(**self._head, choices=choices, usage=self.usage)


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
