"""Launching for the fake runner: nothing is computed before somebody waits, as late as a device may be.

A step keeps copies of what it was given, so it notices nothing of what becomes of its sequences, and what it is not
allowed to know before the step ahead of it is done is really not there.
"""

import copy
from collections import deque
from collections.abc import Sequence as Seq
from typing import Any, Literal

from deepseek_engine.runner_protocol import Runner
from deepseek_engine.sequence import PENDING_TOKEN_ID, SampledToken, ScheduledSequence, Sequence


class FakeStep:
    """Implements the Launched protocol: a step that is computed when it is waited for, after those before it."""

    def __init__(
        self, launcher: "FakeLauncher", batch: Seq[ScheduledSequence], previous: "FakeStep | None", *, fails: bool
    ) -> None:
        self.batch = [ScheduledSequence(_copy(each.sequence), each.num_new_tokens) for each in batch]
        self._launcher = launcher
        self._sequences = [each.sequence for each in batch]
        self._previous = previous
        self._fails = fails
        self._token_of: dict[Sequence, int] | None = None

    def wait(self) -> list[SampledToken]:
        """Compute it. A step whose predecessor failed fails as well: it has nothing to go on from."""
        tokens = self._launcher.compute(self)
        takers = [sequence for sequence, each in zip(self._sequences, self.batch, strict=True) if each.needs_token]
        self._token_of = {sequence: token.token_id for sequence, token in zip(takers, tokens, strict=True)}
        return tokens

    def token_of(self, sequence: Sequence) -> int:
        """What it sampled."""
        if self._token_of is None:
            raise RuntimeError("the step before this one has failed")
        return self._token_of[sequence]

    def fill_in(self) -> None:
        """Take pending inputs from the step before."""
        if self._fails:
            raise RuntimeError("a step that fails on the device")
        for original, each in zip(self._sequences, self.batch, strict=True):
            token_ids, start = each.sequence.token_ids, each.sequence.num_computed_tokens
            if PENDING_TOKEN_ID in token_ids[start : start + each.num_new_tokens]:
                assert (each.num_new_tokens, start) == (1, len(token_ids) - 1), "only a last token can be pending"
                assert self._previous is not None, "a pending token of a step that was taken up"
                token_ids[start] = self._previous.token_of(original)
        self._previous = None
        assert all(PENDING_TOKEN_ID not in each.sequence.token_ids for each in self.batch)


class FakeLauncher:
    """Implements the Launcher protocol around a runner that is the fake one or behaves like it.

    Args:
        runner: what computes in the end.

    Attributes:
        fails_next: make the next launch fail, or the step that it launches.
        num_launched: steps so far.
    """

    def __init__(self, runner: Runner[Any], *, penalises_on_host: bool = False) -> None:
        self.penalises_on_host = penalises_on_host
        self.fails_next: Literal["launch", "step"] | None = None
        self.num_launched = 0
        self._runner = runner
        self._under_way: deque[FakeStep] = deque()

    def launch(self, batch: Seq[ScheduledSequence], previous: FakeStep | None) -> FakeStep:
        """Note what is to be computed."""
        assert batch
        assert len(self._under_way) < 2, "three steps under way"
        assert previous is (self._under_way[-1] if self._under_way else None), "previous is the step before, if any"
        for each in batch:
            sequence = each.sequence
            assert each.num_new_tokens >= sequence.num_indivisible_tokens, "a bidirectional prefix was split"
            assert not each.draft_token_ids, "drafts were launched"
            assert not each.read_positions, "a reading was launched"
            assert sequence.grammar is None, "a grammar was launched"
            assert sequence.forced_token_id is None, "a forced token was launched"
            assert not (self.penalises_on_host and sequence.params.penalises_tokens), "penalties were launched"
        failure, self.fails_next = self.fails_next, None
        if failure == "launch":
            raise RuntimeError("a launch that fails")
        step = FakeStep(self, batch, previous, fails=failure == "step")
        self._under_way.append(step)
        self.num_launched += 1
        return step

    def compute(self, step: FakeStep) -> list[SampledToken]:
        """Compute the oldest step, whatever comes of it."""
        assert self._under_way[0] is step, "steps are taken up in their order"
        try:
            step.fill_in()
            return self._runner.sample(self._runner.forward(step.batch), step.batch)
        finally:
            self._under_way.popleft()

    def check_order(self, batch: Seq[ScheduledSequence]) -> None:
        """Assert that the device may compute this batch now: nothing is under way, or it is the oldest that is."""
        assert not self._under_way or batch is self._under_way[0].batch, "computed beside a step under way"


def _copy(sequence: Sequence) -> Sequence:
    taken = copy.copy(sequence)
    taken.token_ids, taken.block_table = list(sequence.token_ids), list(sequence.block_table)
    taken.thinking = copy.deepcopy(sequence.thinking)
    return taken
