"""Who gets draft tokens in a step and how many, and what came of them.

How many each sequence may have is decided for a whole step (`Payoff`), before the step ahead of it is taken up: without
any, both may overlap. A sequence whose drafts are mostly wrong is left out for a while.

Drafts never change an answer. A row behind draft tokens is sampled with the draw of its own position, as it would be in
a later step; a draft is accepted while it is the very token that was sampled before it, greedy or not. So this is
verification by equality, not rejection sampling: lossless for a fixed seed, and not only in distribution.
"""

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from deepseek_engine.config import EngineConfig
from deepseek_engine.runner_protocol import Drafter, RunnerInfo
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.speculation.methods import DraftMethod, ModelDrafts, NgramDrafts, Reserve
from deepseek_engine.speculation.payoff import Payoff

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

    Use: `plan()` a step, `add_drafts()` if that says so, compute it, `observe()` each sequence's drafts, `note_step()`.

    Args:
        num_tokens: drafts of one sequence and step at most.
        method: what makes them.
        payoff: says how many pay; None: as many as there may be.
        max_rows: sampled rows of a step with drafts at most; None is any number.
        beside_prompts: whether steps with chunks of prompts may have drafts.

    Attributes:
        num_off_steps: decoding steps that could have had drafts, but for how little these pay.
        num_guesses: what was last planned for a step of decodes.
    """

    def __init__(
        self,
        num_tokens: int,
        method: DraftMethod,
        payoff: Payoff | None = None,
        *,
        max_rows: int | None = None,
        beside_prompts: bool = True,
    ) -> None:
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_off_steps = 0
        self.num_guesses = num_tokens
        self._num_tokens = num_tokens
        self._method = method
        self._payoff = payoff
        self._max_rows = max_rows
        self._beside_prompts = beside_prompts
        self._accepted: dict[Sequence, int] = {}  # of the step whose drafts are observed
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()

    def plan(self, batch: Seq[ScheduledSequence]) -> int:
        """Drafts that each sequence of the coming step may have; tokens that are pending need not be known."""
        if not any(self._limit(each) > 0 for each in batch):
            return 0
        is_decode = _is_decode(batch)
        if not is_decode and not self._beside_prompts:
            return 0
        most = self._num_tokens
        if self._max_rows is not None:
            most = min(most, self._max_rows // len(batch) - 1)
        planned = self._payoff.choose(len(batch), most) if is_decode and most > 0 and self._payoff is not None else most
        if is_decode:
            self.num_off_steps += planned <= 0
            self.num_guesses = max(planned, 0)
        return max(planned, 0)

    def add_drafts(
        self, batch: Seq[ScheduledSequence], planned: int, max_tokens: int, reserve: Reserve
    ) -> list[ScheduledSequence]:
        """The batch with drafts in what it leaves of the step's `max_tokens`; prompts come before guesses.

        Args:
            batch: the step.
            planned: drafts of a sequence at most, from `plan`.
            max_tokens: of the step, drafts included.
            reserve: gets slots for drafts.
        """
        result = list(batch)
        budget = max_tokens - sum(scheduled.num_new_tokens for scheduled in batch)
        if budget <= 0:
            return result
        limits = [(index, limit) for index, each in enumerate(batch) if (limit := min(self._limit(each), planned)) > 0]
        wanted = [(batch[index].sequence, limit) for index, limit in limits]
        if wanted:
            for (index, _), drafts in zip(limits, self._method.draft(wanted, budget, reserve), strict=True):
                if drafts:
                    result[index] = replace(batch[index], draft_token_ids=tuple(drafts))
        return result

    def note_step(self, batch: Seq[ScheduledSequence], planned: int) -> None:
        """A step's tokens are there, and its drafts observed; `planned` is what they were planned by."""
        accepted, self._accepted = self._accepted, {}
        if self._payoff is None:
            return
        if _is_decode(batch):
            tokens: dict[Hashable, int] = {each.sequence: 1 for each in batch}
            for sequence, num_accepted in accepted.items():
                tokens[sequence] = 1 + num_accepted
            self._payoff.note(planned, tokens)
        else:
            self._payoff.pass_over()

    def stats(self) -> dict[str, int]:
        """Its fields of `EngineStats`."""
        names = ("num_draft_tokens", "num_accepted_tokens", "num_guesses", "num_off_steps")
        return {name: getattr(self, name) for name in names}

    def observe(self, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
        """A step has verified drafts: keep on, or pause for twice as long as the last time."""
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        self._accepted[sequence] = num_accepted
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


def _is_decode(batch: Seq[ScheduledSequence]) -> bool:
    return all(scheduled.num_new_tokens == 1 for scheduled in batch)


def build_speculator(
    config: EngineConfig, info: RunnerInfo, drafter: Drafter | None, now: Callable[[], float]
) -> Speculator | None:
    """What the settings ask for; None is no speculation.

    Args:
        config: how to run.
        info: of the runner.
        drafter: the runner's.
        now: a clock in seconds.
    """
    if config.speculation is None:
        return None
    if config.speculation == "ngram":
        method: DraftMethod = NgramDrafts(config.ngram_min, config.ngram_max)
    else:
        assert drafter is not None, "a runner that cannot guess refuses to load"
        method = ModelDrafts(drafter)
    return Speculator(
        config.num_drafts,
        method,
        Payoff(config.num_drafts, now) if config.adaptive_speculation else None,
        max_rows=info.max_draft_rows,
        beside_prompts=info.drafts_beside_prompts,
    )
