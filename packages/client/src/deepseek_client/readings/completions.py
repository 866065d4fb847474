"""A stream of plain completions."""

from collections.abc import Sequence

from typing_extensions import override

from deepseek_client.readings.base import Reading, SoFar
from deepseek_client.types.completions import Completion, CompletionChoice, CompletionLogprobs


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
