"""Streams of text without chat chunks: completions, generate (or another stream read as if it were that), responses."""

from collections.abc import Sequence
from typing import Any, cast

from pydantic_core import from_json
from typing_extensions import override

from deepseek_client.readings.base import ErrorInChunkError, Reading, SoFar
from deepseek_client.readings.chat import ChatReading
from deepseek_client.types.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Generation,
    GenerationChunk,
)
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


class CompletionReading(Reading[Completion, Completion]):
    """A stream of plain completions: the chunks themselves out."""

    def __init__(self, expected_choices: int = 1) -> None:
        super().__init__(expected_choices)
        self._choices: dict[int, list[CompletionChoice]] = {}
        self._finish_reasons: dict[int, str] = {}

    @override
    def read(self, data: str) -> Sequence[Completion]:
        return (self.take(data),)

    def take(self, data: str) -> Completion:
        """As `read`; each event is one chunk."""
        chunk = Completion.model_validate_json(data)
        self._note(chunk)
        for choice in chunk.choices:
            self._choices.setdefault(choice.index, []).append(choice)
            if choice.finish_reason:
                self._finish_reasons[choice.index] = choice.finish_reason
        return chunk

    @property
    @override
    def finish_reasons(self) -> dict[int, str]:
        return self._finish_reasons

    @override
    def so_far(self) -> SoFar:
        said = [piece for piece in self._choices.get(0, ()) if piece.text]
        num_ids = sum(len(piece.token_ids or ()) for piece in said)
        return SoFar("".join(piece.text for piece in said), num_tokens=self._num_tokens(len(said), num_ids))

    @override
    def answer(self) -> Completion:
        choices = [self._join(index) for index in sorted(self._choices)]
        return Completion(**self._head, choices=choices, usage=self.usage)

    def _join(self, index: int) -> CompletionChoice:
        pieces = self._choices[index]
        logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        token_ids = [token for piece in pieces for token in piece.token_ids or ()]
        return CompletionChoice(
            index=index,
            text="".join(piece.text for piece in pieces),
            finish_reason=self._finish_reasons.get(index),
            logprobs=_join_logprobs(logprobs) if logprobs else None,
            token_ids=token_ids or None,
        )


def _join_logprobs(pieces: list[CompletionLogprobs]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[token for piece in pieces for token in piece.tokens],
        token_logprobs=[value for piece in pieces for value in piece.token_logprobs],
        top_logprobs=[top for piece in pieces for top in piece.top_logprobs or ()] or None,
        text_offset=[offset for piece in pieces for offset in piece.text_offset],
    )


class GenerationReading(Reading[str, Generation]):
    """A stream of our `/v1/generate`: strings out."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None

    @override
    def read(self, data: str) -> Sequence[str]:
        chunk = GenerationChunk.model_validate_json(data)
        self._note(chunk)
        if chunk.finish_reason:
            self._finish_reason = chunk.finish_reason
        if chunk.token_ids:
            self._token_ids += chunk.token_ids
        if chunk.text:
            self._parts.append(chunk.text)
        return (chunk.text,) if chunk.text else ()

    @property
    @override
    def finish_reasons(self) -> dict[int, str]:
        return {0: self._finish_reason} if self._finish_reason else {}

    @override
    def so_far(self) -> SoFar:
        return SoFar("".join(self._parts), num_tokens=self._num_tokens(len(self._parts), len(self._token_ids)))

    @override
    def answer(self) -> Generation:
        return Generation(
            **self._head,
            text="".join(self._parts),
            finish_reason=self._finish_reason,
            token_ids=self._token_ids or None,
            usage=self.usage,
        )


class TextReading(Reading[str, Generation]):
    """A chat or completion stream read as our generate stream: strings out. For servers without `/v1/generate`."""

    def __init__(self, inner: ChatReading | CompletionReading) -> None:
        super().__init__()
        self._inner = inner

    @override
    def read(self, data: str) -> Sequence[str]:
        chunk = self._inner.take(data)
        self.usage = self._inner.usage
        if not chunk.choices:
            return ()
        choice = chunk.choices[0]
        text = choice.delta.content if isinstance(choice, ChatChunkChoice) else choice.text
        return (text,) if text else ()

    @property
    @override
    def origin(self) -> tuple[str, float | None]:
        return self._inner.origin

    @property
    @override
    def finish_reasons(self) -> dict[int, str]:
        return self._inner.finish_reasons

    @override
    def so_far(self) -> SoFar:
        return self._inner.so_far()

    @override
    def begin_part(self) -> None:
        self._inner.begin_part()

    @override
    def answer(self) -> Generation:
        return as_generation(self._inner.answer())


def as_generation(answer: ChatCompletion | Completion) -> Generation:
    """The first choice of a chat or completion answer, in the shape of a generate answer."""
    text, finish_reason, token_ids = "", None, None
    if answer.choices:
        choice = answer.choices[0]
        text = _text_of(choice.message) if isinstance(choice, ChatChoice) else choice.text
        finish_reason, token_ids = choice.finish_reason, choice.token_ids
    return Generation(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        text=text,
        finish_reason=finish_reason,
        token_ids=token_ids,
        usage=answer.usage,
    )


def _text_of(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text or "" for part in message.content or ())


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
