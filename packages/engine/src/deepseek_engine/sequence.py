"""A request's tokens, blocks and state."""

import enum
from dataclasses import dataclass, field
from typing import Final

import msgspec

from deepseek_engine.config import MAX_DRAFTS
from deepseek_engine.grammar.protocol import TokenMask
from deepseek_engine.grammar.state import SequenceGrammar
from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.prompt_reading import PromptReading
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.thinking import ThinkingState

PENDING_TOKEN_ID: Final = -1
"""Stands for a token that a step under way samples, while the next step is prepared."""


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life; only WAITING and RUNNING ones may hold blocks."""

    PENDING = enum.auto()
    """A second or later answer, until the first one has computed the prompt that they share."""
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """One answer in the making: the prompt's tokens followed by the generated ones.

    `num_computed_tokens` counts the tokens whose keys and values are in the cache; each step brings it nearer to
    `len(token_ids)`, and a token is sampled in the step that makes them equal. Preemption sets it back to 0: that one
    rule gives chunked prefill, prefix reuse and recompute (vLLM's scheduler). What is launched without waiting for it
    counts as computed at once, and the token that it samples is PENDING_TOKEN_ID until it is taken up.

    Attributes:
        sampling_seed: from 0 to 2**63 - 1; the same for the same request seed and index.
        adapter_id: the runner's number of its LoRA adapter; 0 is the base model.
        max_total_tokens: prompt and answer at most.
        prefix_len: leading tokens that attend to each other in both directions; all that follow are causal, also when
            preemption has them recomputed with the prefix.
        num_cached_tokens: found in the prefix cache when the sequence last got its blocks.
        tenant: on whose behalf it runs; service is shared out between tenants.
        level: its priority, lower first; it gets better as the sequence waits.
        arrival: the scheduler's order of arrival, lower first.
        num_preemptions: how often it had to give up its blocks.
        num_charged_tokens: leading tokens whose computation its tenant has been charged for, or got from the cache.
        thinking: where its reasoning is; None if nobody asked.
        reading: what is read off its prompt; None if nothing is.
        forks: answers that start once this one has computed the prompt.
        block_digests: the prefix cache's names for the leading full blocks, as far as they were needed.
        grammar: what the answer has to follow, with its place in it.
        token_mask: of the tokens that the grammar allows next; set before each token is sampled.
        adjusts_logits: whether its parameters change logits before a token is chosen.
    """

    request_id: str
    index: int
    token_ids: list[int]
    params: SamplingParams
    sampling_seed: int
    stop_token_ids: frozenset[int] = frozenset()
    cache_salt: str = ""
    tenant: str = ""
    adapter_id: int = 0
    max_total_tokens: int = 0
    prefix_len: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list[int])
    level: int = 0
    arrival: int = 0
    num_preemptions: int = 0
    num_charged_tokens: int = 0
    thinking: ThinkingState | None = None
    reading: PromptReading | None = None
    forks: list["Sequence"] = field(default_factory=list["Sequence"])
    block_digests: list[bytes] = field(default_factory=list[bytes])
    grammar: SequenceGrammar | None = None
    token_mask: TokenMask | None = None
    num_prompt_tokens: int = field(init=False)
    adjusts_logits: bool = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        params = self.params
        delays_stops = params.min_tokens > 0 and bool(self.stop_token_ids)
        self.adjusts_logits = params.penalises_tokens or bool(params.logit_bias) or delays_stops
        self.level = self.params.priority

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_cached_tokens(self) -> int:
        """Tokens whose computation the prefix cache may spare it: what has yet to be read has to be computed."""
        return len(self.token_ids) if self.reading is None or self.reading.is_complete else self.reading.next_position

    @property
    def is_prompt_only(self) -> bool:
        """Whether it ends where its prompt does."""
        return self.params.max_tokens == 0

    @property
    def num_indivisible_tokens(self) -> int:
        """Tokens that the next step has to compute all together: what is left of a bidirectional prefix."""
        return max(self.prefix_len - self.num_computed_tokens, 0)

    @property
    def max_drafts(self) -> int:
        """Draft tokens that a step may verify at most: 0 where what is chosen depends on more than the position.

        Penalties count the tokens before, and grammars follow them: a row behind drafts would need a state of its own.
        A used-up budget of thinking forces a token.
        """
        if self.params.penalises_tokens or self.grammar is not None:
            return 0
        until_forced = None if self.thinking is None else self.thinking.max_drafts
        return MAX_DRAFTS if until_forced is None else min(MAX_DRAFTS, until_forced)

    @property
    def forced_token_id(self) -> int | None:
        """The token that has to be chosen next, whatever its logits; None where the choice is free."""
        return None if self.thinking is None else self.thinking.forced_token_id

    def append(self, token_id: int) -> None:
        """Make the answer longer by a token."""
        self.token_ids.append(token_id)
        if self.thinking is not None:
            self.thinking.push(token_id)

    def resolve(self, position: int, token_id: int) -> None:
        """A token that was pending is known; an answer's last one has no place yet, as nothing was to follow it."""
        if position < len(self.token_ids):
            assert self.token_ids[position] == PENDING_TOKEN_ID, f"position {position} is not pending"
            self.token_ids[position] = token_id
        else:
            self.token_ids.append(token_id)
        if self.thinking is not None:
            self.thinking.push(token_id)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and holds no blocks."""
        return self.status is SequenceStatus.FINISHED


# The next two are made for every sequence and step: structs cost a third of frozen dataclasses, and are no work for the
# garbage collector.
class ScheduledSequence(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step: compute `num_new_tokens` from `num_computed_tokens` on.

    Attributes:
        draft_token_ids: guesses for the tokens that follow; computed behind the new ones, and only where
            `needs_token` and `num_new_tokens == 1`.
    """

    sequence: Sequence
    num_new_tokens: int
    draft_token_ids: tuple[int, ...] = ()

    @property
    def needs_token(self) -> bool:
        """Whether this step reaches the sequence's last token, so that the next one can be sampled.

        Holds until the step is committed, which moves `num_computed_tokens` on.
        """
        sequence = self.sequence
        reaches_end = sequence.num_computed_tokens + self.num_new_tokens == len(sequence.token_ids)
        return reaches_end and sequence.params.max_tokens != 0  # not is_prompt_only, which is a call

    @property
    def read_positions(self) -> range:
        """Positions among the new tokens that are read for the prompt's sake; holds until the step is committed."""
        reading = self.sequence.reading
        if reading is None or reading.is_complete:
            return range(0)
        begin = self.sequence.num_computed_tokens
        return reading.within(begin, begin + self.num_new_tokens)

    @property
    def num_sampled_rows(self) -> int:
        """Rows of logits that the step yields: one where a token is needed, and one behind each draft."""
        return 1 + len(self.draft_token_ids) if self.needs_token else 0


class SampledToken(msgspec.Struct, frozen=True, gc=False):
    """The sampler's answer for one row."""

    token_id: int
    logprobs: TokenLogprobs | None = None
