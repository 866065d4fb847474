"""Who gets draft tokens in a step and how many, and what came of them.

Drafts never change an answer. A row behind draft tokens is sampled with the draw of its own position, as it would be in
a later step; a draft is accepted while it is the very token that was sampled before it, greedy or not. So this is
verification by equality, not rejection sampling: lossless for a fixed seed, and not only in distribution.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from deepseek_engine.config import EngineConfig
from deepseek_engine.runner_protocol import Drafter
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.methods import DraftMethod, ModelDrafts, NgramDrafts, Reserve

SMOOTHING: Final = 0.2
"""Weight of the newest step in a sequence's acceptance rate."""
MIN_ACCEPTANCE: Final = 0.2
"""Below this share of accepted drafts a sequence pauses: its rows then cost more than they save."""
FIRST_PAUSE_TOKENS: Final = 16
LONGEST_PAUSE_TOKENS: Final = 1024


@dataclass(slots=True)
class _Record:
    """How one sequence's drafts have fared."""

    acceptance: float = 0.5
    pause_tokens: int = FIRST_PAUSE_TOKENS
    resumes_at: int = 0  # length at which it may draft again


class Speculator:
    """Adds drafts to scheduled decodes.

    Args:
        num_tokens: drafts of one sequence and step at most.
        method: what makes them.
    """

    def __init__(self, num_tokens: int, method: DraftMethod) -> None:
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._num_tokens = num_tokens
        self._method = method
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()

    def add_drafts(self, batch: Seq[ScheduledSequence], max_tokens: int, reserve: Reserve) -> list[ScheduledSequence]:
        """The batch with drafts in what it leaves of the step's `max_tokens`; prompts come before guesses."""
        result = list(batch)
        budget = max_tokens - sum(scheduled.num_new_tokens for scheduled in batch)
        if budget <= 0:
            return result
        limits = [(index, limit) for index, each in enumerate(batch) if (limit := self._limit(each)) > 0]
        wanted = [(batch[index].sequence, limit) for index, limit in limits]
        if wanted:
            for (index, _), drafts in zip(limits, self._method.draft(wanted, budget, reserve), strict=True):
                if drafts:
                    result[index] = replace(batch[index], draft_token_ids=tuple(drafts))
        return result

    def observe(self, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
        """A step has verified drafts: keep on, or pause for twice as long as the last time."""
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        record = self._records.get(sequence)
        if record is None:
            record = self._records[sequence] = _Record()
        record.acceptance += SMOOTHING * (num_accepted / num_drafts - record.acceptance)
        if record.acceptance < MIN_ACCEPTANCE:
            record.resumes_at = len(sequence.token_ids) + record.pause_tokens
            record.pause_tokens = min(2 * record.pause_tokens, LONGEST_PAUSE_TOKENS)
            record.acceptance = 0.5
        elif num_accepted == num_drafts:
            record.pause_tokens = FIRST_PAUSE_TOKENS

    def _limit(self, scheduled: ScheduledSequence) -> int:
        """Drafts that a sequence may have in this step, apart from the step's budget."""
        sequence = scheduled.sequence
        if scheduled.num_new_tokens != 1 or not scheduled.needs_token:
            return 0
        record = self._records.get(sequence)
        if record is not None and len(sequence.token_ids) < record.resumes_at:
            return 0
        # The token after the last draft is sampled too.
        num_left = sequence.max_total_tokens - len(sequence.token_ids) - 1
        return min(self._num_tokens, num_left, sequence.max_drafts)


def build_speculator(config: EngineConfig, drafter: Drafter | None) -> Speculator | None:
    """What the settings ask for; None is no speculation.

    Args:
        config: how to run.
        drafter: the runner's.
    """
    if config.speculation == "ngram":
        return Speculator(config.num_drafts, NgramDrafts(config.ngram_min, config.ngram_max))
    if config.speculation == "mtp":
        assert drafter is not None, "a runner that cannot guess refuses to load"
        return Speculator(config.num_drafts, ModelDrafts(drafter))
    return None
