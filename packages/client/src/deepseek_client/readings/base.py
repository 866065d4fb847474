"""Reading: the state of one stream, of whichever kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deepseek_client.types.base import Usage
from deepseek_client.types.chat import ChatCompletionChunk, Completion, GenerationChunk

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


class ErrorInChunkError(ValueError):
    """A chunk carries an error beside its choices, as OpenRouter sends it."""


@dataclass(frozen=True, slots=True)
class SoFar:
    """The words of an answer that has but one, as far as they have come.

    Attributes:
        num_tokens: how many tokens they are at least.
    """

    text: str
    reasoning: str = ""
    has_calls: bool = False
    num_tokens: int = 0


class Reading(ABC, Generic[ItemT, AnswerT]):
    """The state of one stream.

    Args:
        expected_choices: how many choices must report a finish_reason before the answer is whole without `[DONE]`.
    """

    def __init__(self, expected_choices: int = 1) -> None:
        self.expected_choices = expected_choices
        self.usage: Usage | None = None
        self._usage_of_parts: Usage | None = None
        self.is_over = False
        """Whether the stream has had its last event, where the kind of stream has one other than `[DONE]`."""
        self._head: dict[str, Any] = {"id": ""}

    @abstractmethod
    def read(self, data: str) -> Sequence[ItemT]:
        """Take one event's data.

        Returns:
            the caller's items: one, several, or none if the event holds nothing for the caller.

        Raises:
            ValueError: the data is not the chunk that the contract names (pydantic.ValidationError), or it carries an
                error (ErrorInChunkError).
        """

    def comment(self, text: str) -> Sequence[ItemT]:  # noqa: ARG002
        """The caller's items for a comment of the stream, such as a keep-alive. None is a part of the answer."""
        return ()

    def end(self) -> Sequence[ItemT]:
        """The caller's last items, once the answer is whole."""
        return ()

    @property
    def origin(self) -> tuple[str, float | None]:
        """The model that the answer names, and when it began, in seconds since the epoch."""
        return self._head.get("model", ""), self._head.get("created") or None

    @property
    @abstractmethod
    def finish_reasons(self) -> dict[int, str]:
        """The finish_reason of each choice that has one."""

    @abstractmethod
    def answer(self) -> AnswerT:
        """All that has arrived, as the answer that a plain call would have given."""

    def so_far(self) -> SoFar | None:
        """What has been said; None for an answer that is more than a text."""
        return None

    def begin_part(self) -> None:
        """Another request is to give the rest of the answer: its token counts are added to these."""
        self._usage_of_parts = self.usage

    @property
    def is_complete(self) -> bool:
        """Whether every choice has its finish_reason."""
        return len(self.finish_reasons) >= self.expected_choices

    def _note(self, chunk: ChatCompletionChunk | Completion | GenerationChunk) -> None:
        """Keep what stands beside the choices: ids of the first chunk, usage of the last that has one."""
        extra = chunk.model_extra
        if extra and extra.get("error"):
            raise ErrorInChunkError
        if not self._head["id"]:
            self._head = {"id": chunk.id, "created": chunk.created, "model": chunk.model, **(extra or {})}
        if chunk.usage is not None:
            earlier = self._usage_of_parts
            self.usage = chunk.usage if earlier is None else earlier.plus(chunk.usage)

    def _num_tokens(self, pieces: int, token_ids: int) -> int:
        """How many tokens have come at least: each piece is one or more."""
        counted = self.usage.completion_tokens if self.usage is not None else 0
        return max(counted, pieces, token_ids)
