"""Filling in the middle: prompts of a text's beginning and end, for models trained to write what is between.

Sources: the README of DeepSeek-Coder (V2, V2.5 and V3 have the same tokens), Qwen2.5-Coder's examples, and the model
cards of StarCoder and its kin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class InfillFormat:
    """How one family marks the gap. The middle comes after the prompt.

    Attributes:
        before_prefix: stands before the text's beginning.
        before_suffix: stands before its end.
        after_suffix: asks for the middle.
        ends: other tokens with which a middle may end; each model has some of them.
    """

    before_prefix: str
    before_suffix: str
    after_suffix: str
    ends: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens around the gap; a model that has all of them knows the format."""
        return (self.before_prefix, self.before_suffix, self.after_suffix)

    def prompt(self, prefix: str, suffix: str) -> str:
        """What the model is asked."""
        return f"{self.before_prefix}{prefix}{self.before_suffix}{suffix}{self.after_suffix}"


INFILL_FORMATS: Final = (
    InfillFormat("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    InfillFormat(
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
    ),
    InfillFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<filename>")),
    InfillFormat("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>",)),
)


@dataclass(frozen=True, slots=True)
class Infill:
    """A model's format, and the tokens that end a middle: the gap's own marks among them."""

    format: InfillFormat
    end_token_ids: tuple[int, ...]


def find_infill(token_id: Callable[[str], int | None]) -> Infill | None:
    """What a model knows of filling in, told from its vocabulary; None if nothing.

    Args:
        token_id: the id of the one token that is written so, if there is one.
    """
    for known in INFILL_FORMATS:
        marks = [token_id(token) for token in known.tokens]
        if None not in marks:
            found = (*marks, *map(token_id, known.ends))
            return Infill(known, tuple(index for index in found if index is not None))
    return None
