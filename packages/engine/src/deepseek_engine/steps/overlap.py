"""Two steps at a time: one runs on the device while the host takes up the one before and prepares the next.

    host    | schedule 2, launch 2 | take up 1 | schedule 3, launch 3 | take up 2 | ...
    device  | step 1 ...................| step 2 ............................| step 3 ...

A token that step 1 samples is pending while step 2 is prepared: step 2 takes it from the device's own memory. What ends
at take-up (a stop token, a cancel) has a row in the step launched meanwhile, which is wasted and dropped. Its blocks
are free at once. That is safe, as the device computes steps in the order of their launch: whoever gets a block next
writes its slots in a later step, each before it is read. And what the prefix cache knows is never written again: a
block is registered when the step that filled it is taken up, and what its sequence has under way writes behind it.

A step that fails, at launch or later, is taken back together with the one after it and computed again without overlap,
where failures are told apart and lack of memory is dealt with.
"""

import logging
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from deepseek_engine.runner_protocol import Launched, Launcher
from deepseek_engine.sequence import SampledToken, ScheduledSequence
from deepseek_engine.steps.journal import StepJournal
from deepseek_engine.steps.launched_rows import LaunchedRow, advance, take_back

logger = logging.getLogger(__name__)

SyncReason = Literal["grammar", "reading", "thinking", "penalties", "speculation", "memory", "failure"]

PAUSE_STEPS: Final = 32
"""Steps without overlap after one that failed: one that fails whenever it overlaps costs little then."""


@dataclass(frozen=True, slots=True)
class StepUnderWay:
    """A step that was launched and has not been taken up.

    Attributes:
        began_s: the engine's clock at its launch.
        planned: guesses that each of its sequences might have had, and for which none were found.
    """

    batch: Seq[ScheduledSequence]
    rows: list[LaunchedRow]
    launched: Launched
    began_s: float
    planned: int


class Overlap:
    """The steps under way of one engine: one between turns of its loop, two within a turn.

    Args:
        launcher: None where the runner cannot launch; then nothing is ever under way.

    Attributes:
        num_overlapped_steps: steps that were launched while the one before was under way.
        sync_points: steps that were computed by themselves, by what they had to wait for.
    """

    def __init__(self, launcher: Launcher[Any] | None, journal: StepJournal) -> None:
        self.num_overlapped_steps = 0
        self.sync_points: dict[SyncReason, int] = {} if launcher is None else dict.fromkeys(get_args(SyncReason), 0)
        self._launcher = launcher
        self._journal = journal
        self._steps: deque[StepUnderWay] = deque()
        self._pause_steps = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a step has to be taken up."""
        return bool(self._steps)

    def launch(
        self, batch: Seq[ScheduledSequence], began_s: float, *, is_short_of_memory: bool, planned: int = 0
    ) -> bool:
        """Launch the batch. False if it has to be computed by itself, or was not launched because of a failure.

        Args:
            batch: with drafts it is not launched: the step behind it follows from what becomes of them.
            began_s: the engine's clock.
            is_short_of_memory: whether the step budget is lowered.
            planned: see `StepUnderWay`.
        """
        if self._launcher is None:
            return False
        reason = self._why_paused(is_short_of_memory) or why_alone(batch, self._launcher)
        if reason is not None:
            self.sync_points[reason] += 1
            return False
        self._journal.compute(batch)
        before = self._steps[-1].launched if self._steps else None
        try:
            launched = self._launcher.launch(batch, before)
        except Exception:  # whatever a model, a sampler or a device may raise
            logger.exception("a step of %d sequences could not be launched", len(batch))
            self._pause()
            return False
        self._steps.append(StepUnderWay(batch, advance(batch), launched, began_s, planned))
        self.num_overlapped_steps += before is not None
        return True

    def take_up(self) -> tuple[StepUnderWay, list[SampledToken] | None]:
        """Wait for the step that was launched first: it, and its tokens.

        None if it failed: then it and the one after it have been taken back, and nothing is under way.
        """
        step = self._steps[0]
        self._journal.wait(step.batch)
        try:
            tokens = step.launched.wait()
        except Exception:  # as above
            logger.exception("a step of %d sequences failed", len(step.batch))
            self._take_all_back()
            self._pause()
            return step, None
        self._steps.popleft()
        return step, tokens

    def _take_all_back(self) -> None:
        while len(self._steps) > 1:
            later = self._steps.pop()
            try:
                later.launched.wait()  # nothing may be under way when the batch is computed again
            except Exception as error:  # any, as the step before it has failed
                logger.debug("the step after it failed too: %r", error)
            take_back(later.rows)
        self._steps.clear()

    def _pause(self) -> None:
        self._pause_steps = PAUSE_STEPS

    def _why_paused(self, is_short_of_memory: bool) -> SyncReason | None:
        if is_short_of_memory:
            return "memory"  # two steps at a time take more of it
        if self._pause_steps:
            self._pause_steps -= 1
            return "failure"
        return None


def why_alone(batch: Seq[ScheduledSequence], launcher: Launcher[Any]) -> SyncReason | None:
    """What in the batch depends on a token that may be pending, or comes between forward and sampling."""
    penalises_on_host = launcher.penalises_on_host
    for scheduled in batch:
        sequence = scheduled.sequence
        if scheduled.draft_token_ids:
            return "speculation"
        if sequence.grammar is not None:
            return "grammar"
        if sequence.reading is not None and scheduled.read_positions:
            return "reading"
        if sequence.thinking is not None:
            # A pending token is like a draft before this step's own: none may be forced behind it.
            until_forced = sequence.thinking.max_drafts
            if until_forced is not None and until_forced < 1:
                return "thinking"
        if penalises_on_host and sequence.adjusts_logits and sequence.params.penalises_tokens:
            return "penalties"
    return None
