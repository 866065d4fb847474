"""A request's tokens, blocks and state."""

import enum
from dataclasses import dataclass, field

from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.sampling_params import SamplingParams


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer in the making: the prompt's tokens followed by the generated ones.

    `num_computed_tokens` counts the tokens whose keys and values are in the cache; each step brings it nearer to
    `len(token_ids)`, and a token is sampled in the step that makes them equal. Preemption sets it back to 0: that one
    rule gives chunked prefill, prefix reuse and recompute (vLLM's scheduler).
    """

    request_id: str
    index: int
    token_ids: list[int]
    params: SamplingParams
    sampling_seed: int
    stop_token_ids: frozenset[int] = frozenset()
    cache_salt: str = ""
    max_total_tokens: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list[int])
    num_prompt_tokens: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and holds no blocks."""
        return self.status is SequenceStatus.FINISHED


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step: compute `num_new_tokens` from `num_computed_tokens` on."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def needs_token(self) -> bool:
        """Whether this step reaches the sequence's last token, so that the next one can be sampled."""
        return self.sequence.num_computed_tokens + self.num_new_tokens == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The sampler's answer for one sequence that needs a token."""

    token_id: int
    logprobs: TokenLogprobs | None = None
