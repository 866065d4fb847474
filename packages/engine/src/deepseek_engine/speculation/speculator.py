"""Who gets draft tokens in a step and how many, and what came of them.

Drafts never change an answer. A row behind draft tokens is sampled with the draw of its own position, as it would be in
a later step; a draft is accepted while it is the very token that was sampled before it, greedy or not. So this is
verification by equality, not rejection sampling: lossless for a fixed seed, and not only in distribution.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.ngram import NgramIndex

SMOOTHING: Final = 0.2
"""Weight of the newest step in a sequence's acceptance rate."""
MIN_ACCEPTANCE: Final = 0.2
"""Below this share of accepted drafts a sequence pauses: its rows then cost more than they save."""
FIRST_PAUSE_TOKENS: Final = 16
LONGEST_PAUSE_TOKENS: Final = 1024


Reserve = Callable[[Sequence, int], int]
"""Gets cache slots for a sequence's draft tokens without taking any from others; says how many of them have one."""


@dataclass(slots=True)
class _Drafting:
    """One sequence's index, and how its drafts have fared."""

    index: NgramIndex
    acceptance: float = 0.5
    pause_tokens: int = FIRST_PAUSE_TOKENS
    resumes_at: int = field(default=0)  # length at which it may draft again


class Speculator:
    """Adds n-gram drafts to scheduled decodes.

    Args:
        num_tokens: drafts of one sequence and step at most.
        min_n: tokens that have to have come before.
        max_n: longest agreement that is looked for.
    """

    def __init__(self, num_tokens: int, min_n: int, max_n: int) -> None:
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._num_tokens = num_tokens
        self._min_n = min_n
        self._max_n = max_n
        self._drafting: WeakKeyDictionary[Sequence, _Drafting] = WeakKeyDictionary()

    def add_drafts(self, batch: Seq[ScheduledSequence], max_tokens: int, reserve: Reserve) -> list[ScheduledSequence]:
        """The batch with drafts in what it leaves of the step's `max_tokens`; prompts come before guesses."""
        budget = max_tokens - sum(scheduled.num_new_tokens for scheduled in batch)
        result: list[ScheduledSequence] = []
        for scheduled in batch:
            drafts = self._draft(scheduled, budget, reserve)
            budget -= len(drafts)
            result.append(replace(scheduled, draft_token_ids=tuple(drafts)) if drafts else scheduled)
        return result

    def observe(self, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
        """A step has verified drafts: keep on, or pause for twice as long as the last time."""
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        state = self._drafting[sequence]
        state.acceptance += SMOOTHING * (num_accepted / num_drafts - state.acceptance)
        if state.acceptance < MIN_ACCEPTANCE:
            state.resumes_at = len(sequence.token_ids) + state.pause_tokens
            state.pause_tokens = min(2 * state.pause_tokens, LONGEST_PAUSE_TOKENS)
            state.acceptance = 0.5
        elif num_accepted == num_drafts:
            state.pause_tokens = FIRST_PAUSE_TOKENS

    def _draft(self, scheduled: ScheduledSequence, budget: int, reserve: Reserve) -> list[int]:
        sequence = scheduled.sequence
        if budget <= 0 or scheduled.num_new_tokens != 1 or not scheduled.needs_token:
            return []
        # The token after the last draft is sampled too.
        num_left = sequence.max_total_tokens - len(sequence.token_ids) - 1
        limit = min(self._num_tokens, num_left, budget, sequence.max_drafts)
        if limit <= 0:
            return []
        state = self._drafting.get(sequence)
        if state is None:
            state = self._drafting[sequence] = _Drafting(NgramIndex(self._min_n, self._max_n))
        if len(sequence.token_ids) < state.resumes_at:
            return []
        drafts = state.index.propose(sequence.token_ids, limit)
        return drafts[: reserve(sequence, len(drafts))] if drafts else []
