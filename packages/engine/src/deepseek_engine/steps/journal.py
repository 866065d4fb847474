"""StepJournal: what the engine is doing now, and where the time of its steps has gone.

Written by the engine's thread, a few attribute writes a step; read by others, without a lock, as numbers that may be a
step apart.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Final, Literal, get_args

from deepseek_engine.messages import STEP_SECONDS_BUCKETS, KindTotals, StepTotals
from deepseek_engine.sequence import ScheduledSequence

Phase = Literal["schedule", "draft", "forward", "sample", "wait", "emit", "send"]
Kind = Literal["prefill", "decode", "mixed"]

_NUM_RECENT: Final = 8


class _KindTotals:
    def __init__(self) -> None:
        self.num_steps_in = [0] * (len(STEP_SECONDS_BUCKETS) + 1)
        self.seconds = 0.0
        self.num_sequences = 0
        self.num_tokens = 0


class StepJournal:
    """One engine's.

    Attributes:
        phase: of the step under way; None between steps.
        turn: grows whenever a step begins, a batch is handed to the runner or waited for, so that one that stays is one
            that hangs.
        batch: what was last handed to the runner, or is waited for, in the step under way.
        recent: kind, sequences, tokens and seconds of the last steps, newest last.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.phase: Phase | None = None
        self.turn = 0
        self.batch: Seq[ScheduledSequence] = ()
        self.recent: deque[tuple[Kind, int, int, float]] = deque(maxlen=_NUM_RECENT)
        self._now = now
        self._entered_s = 0.0
        self._began_s = 0.0
        self._seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._kinds: dict[Kind, _KindTotals] = {kind: _KindTotals() for kind in ("prefill", "decode", "mixed")}

    @property
    def is_stepping(self) -> bool:
        """Whether a step is under way. Sending is none: how long that takes is up to the reader."""
        return self.phase not in (None, "send")

    def enter(self, phase: Phase | None) -> None:
        """The phase before is over; None: and so is the step."""
        now = self._now()
        if self.phase is not None:
            self._seconds[self.phase] += now - self._entered_s
        if phase == "schedule":
            self.turn += 1
            self._began_s = now
        elif phase is None:
            self.batch = ()
        self._entered_s, self.phase = now, phase

    def compute(self, batch: Seq[ScheduledSequence]) -> None:
        """The runner gets a batch, or a part of one that failed."""
        self.batch = batch
        self.turn += 1
        self.enter("forward")

    def wait(self, batch: Seq[ScheduledSequence]) -> None:
        """The runner was given this batch before, and is waited for now."""
        self.batch = batch
        self.turn += 1
        self.enter("wait")

    def count(self, batch: Seq[ScheduledSequence]) -> None:
        """A step has computed this, or taken it up: what was launched before counts with the time of that turn."""
        seconds = self._now() - self._began_s
        num_tokens = num_single = 0
        for scheduled in batch:
            num_tokens += scheduled.num_new_tokens + len(scheduled.draft_token_ids)
            num_single += scheduled.num_new_tokens == 1
        kind: Kind = "decode" if num_single == len(batch) else "mixed" if num_single else "prefill"
        totals = self._kinds[kind]
        totals.num_steps_in[bisect_left(STEP_SECONDS_BUCKETS, seconds)] += 1
        totals.seconds += seconds
        totals.num_sequences += len(batch)
        totals.num_tokens += num_tokens
        self.recent.append((kind, len(batch), num_tokens, seconds))

    def totals(self) -> StepTotals:
        """All of it, since the start."""
        return StepTotals(
            phase_seconds={**self._seconds},
            kinds={
                kind: KindTotals(tuple(each.num_steps_in), each.seconds, each.num_sequences, each.num_tokens)
                for kind, each in self._kinds.items()
            },
        )
