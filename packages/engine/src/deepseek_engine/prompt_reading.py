"""What is read off a prompt while it is computed: log-probabilities of its tokens, or its embedding. Without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from deepseek_engine.messages import TokenLogprobs

Purpose = Literal["logprobs", "mean", "last"]


@dataclass(slots=True, eq=False)
class PromptReading:
    """Which positions of a prompt are read, and how far that has come; shared by all answers to the prompt.

    Positions are read once each and in order, whatever chunks, preemption and cancelled answers do. What the prefix
    cache holds cannot be read, so a sequence takes no more from it than has been read already.

    Attributes:
        purpose: log-probabilities of the next tokens, or the mean or the last hidden state.
        end: positions before this are read.
        next_position: the first that has not been read; at the beginning the first that is wanted.
        num_top: alternatives to report beside a token.
        is_normalised: whether an embedding is scaled to length 1.
        partial: what the runner needs of the positions read so far to go on.
    """

    purpose: Purpose
    end: int
    next_position: int = 0
    num_top: int = 0
    is_normalised: bool = True
    partial: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether every position has been read."""
        return self.next_position >= self.end

    def within(self, begin: int, end: int) -> range:
        """The positions to read in a step that computes those from `begin` to `end`."""
        return range(max(begin, self.next_position), min(end, self.end))

    def advance(self, stop: int, part: "PromptPart") -> None:
        """The positions before `stop` count as read."""
        self.next_position, self.partial = stop, part.partial


@dataclass(frozen=True, slots=True)
class PromptPart:
    """What one step has read of one prompt.

    Attributes:
        logprobs: of the tokens after each position read.
        embedding: the pooled vector as little-endian float32, once all positions were read.
        partial: for the runner itself, when it reads on.
    """

    logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: bytes | None = None
    partial: Any = None


def logprobs_reading(num_prompt_tokens: int, num_top: int) -> PromptReading:
    """Log-probabilities of every prompt token but the first, which nothing predicts."""
    return PromptReading("logprobs", num_prompt_tokens - 1, num_top=num_top)


def embedding_reading(num_prompt_tokens: int, pooling: Literal["mean", "last"], *, normalise: bool) -> PromptReading:
    """The mean of all hidden states after the last norm, or that of the last token."""
    start = 0 if pooling == "mean" else num_prompt_tokens - 1
    return PromptReading(pooling, num_prompt_tokens, start, is_normalised=normalise)
