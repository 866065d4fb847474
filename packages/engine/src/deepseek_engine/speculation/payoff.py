"""Whether guesses pay: how many each sequence gets, by how long a token took in steps of as many sequences.

A row more costs next to nothing while a step is bound by reading the weights, and as much as a token once it computes;
where that is depends on the model, the device, the context and what the host has to do. So it is measured, not known:
the number with the shortest mean time a token is kept, and the others are tried again now and then. The mean is over
sequences, so that those whose text cannot be guessed count as much as those that get most tokens: by the tokens of all,
a few of the latter would slow down everybody.
Source: goodput (Liu et al., "Optimizing Speculative Decoding for Serving Large Language Models Using Goodput", 2024),
without its model of a step, and by sequence.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

WINDOW_STEPS: Final = 6
"""Steps that one estimate is made of. The slowest of them does not count: whatever else the host did is no fault of
the guesses."""
MIN_WINDOW_STEPS: Final = 3
"""Steps after which a trial ends that has brought no guessed token."""
SMOOTHING: Final = 0.5
"""Weight of the newest estimate of what is kept; what is tried anew is judged by that alone."""
LOST_SHARE: Final = 0.02
"""Of the time, that may be lost by trying what pays less."""
LEAST_PAUSE_STEPS: Final = 32
"""Between trials, also of what pays about as much."""
LEAST_S: Final = 1e-9
"""A step takes no less, whatever a coarse clock says."""


@dataclass(slots=True)
class _Estimate:
    """Of one number of guesses, among steps of about as many sequences.

    Attributes:
        rate: tokens a second and sequence; None before it was tried.
        tokens: that the last window brought a sequence.
        tried_at: the step after its last trial.
        seconds: of each of the latest steps.
        steps_of, tokens_of: each sequence's among those.
    """

    rate: float | None = None
    tokens: float = 0.0
    tried_at: int = 0
    seconds: list[float] = field(default_factory=list[float])
    steps_of: Counter[Hashable] = field(default_factory=Counter[Hashable])
    tokens_of: Counter[Hashable] = field(default_factory=Counter[Hashable])

    def add(self, tokens: Mapping[Hashable, int], seconds: float) -> None:
        """A step."""
        self.seconds.append(seconds)
        self.steps_of.update(tokens.keys())
        self.tokens_of.update(tokens)

    @property
    def is_fruitless(self) -> bool:
        """Whether no step has brought a guessed token."""
        return self.tokens_of.total() == self.steps_of.total()

    def end_window(self) -> float:
        """The rate of the latest steps, which are forgotten."""
        counted = sorted(self.seconds)[:-1]
        # Steps a token, the mean of the sequences.
        steps = sum(num / self.tokens_of[each] for each, num in self.steps_of.items()) / len(self.steps_of)
        self.tokens = len(self.seconds) / steps
        self.clear()
        return len(counted) / sum(counted) / steps

    def clear(self) -> None:
        """Forget the latest steps."""
        self.seconds.clear()
        self.steps_of.clear()
        self.tokens_of.clear()

    def loss_s(self, best_rate: float) -> float:
        """The time that a trial takes longer than as many tokens of the best would."""
        return self.tokens * (1 / self.rate - 1 / best_rate) if self.rate else 0.0


class _BatchClass:
    """Steps of about as many sequences."""

    def __init__(self, estimates: dict[int, _Estimate]) -> None:
        self._estimates = estimates
        self._num_steps = 0
        self._num_known = sum(each.rate is not None for each in estimates.values())
        self._last_trial = 0
        self._may_lose_s = 0.0
        self._tried: int | None = None

    def like(self) -> "_BatchClass":
        """One that begins with what this one knows."""
        return _BatchClass({count: _Estimate(each.rate, each.tokens) for count, each in self._estimates.items()})

    def choose(self, most: int) -> int:
        """The number of guesses for the next step, at most so many."""
        allowed = {count: each for count, each in self._estimates.items() if count <= most}
        if self._tried not in allowed:
            self._tried = self._next_trial(allowed)
            if self._tried is None:
                return _best(allowed)
            allowed[self._tried].clear()
        return self._tried

    def note(self, count: int, tokens: Mapping[Hashable, int], seconds: float) -> None:
        """A step of so many guesses a sequence brought each sequence so many tokens in that time."""
        self._num_steps += 1
        estimate = self._estimates[count]
        estimate.add(tokens, seconds)
        is_tried = count == self._tried
        if not is_tried:
            self._may_lose_s += LOST_SHARE * seconds
        is_hopeless = is_tried and count > 0 and estimate.is_fruitless
        if len(estimate.seconds) < (MIN_WINDOW_STEPS if is_hopeless else WINDOW_STEPS):
            return
        rate = estimate.end_window()
        if estimate.rate is None or is_tried:
            self._end_trial(count, rate)
        else:
            estimate.rate += SMOOTHING * (rate - estimate.rate)

    def _next_trial(self, allowed: dict[int, _Estimate]) -> int | None:
        if self._num_known < 2:  # all and none are compared at once
            return next((count for count, each in allowed.items() if each.rate is None), None)
        if self._num_steps < self._last_trial + LEAST_PAUSE_STEPS:
            return None
        best = _best(allowed)
        others = [count for count in allowed if count != best]
        tried = min(others, key=lambda count: allowed[count].tried_at)
        return tried if allowed[tried].loss_s(allowed[best].rate or 0.0) <= self._may_lose_s else None

    def _end_trial(self, count: int, rate: float) -> None:
        estimate = self._estimates[count]
        self._num_known += estimate.rate is None
        estimate.rate, estimate.tried_at = rate, self._num_steps
        self._last_trial, self._tried = self._num_steps, None
        if self._num_known > 1:
            best_rate = self._estimates[_best(self._estimates)].rate or 0.0
            losses = {other: each.loss_s(best_rate) for other, each in self._estimates.items()}
            lost_s = sum(losses.values()) if self._num_known == 2 else losses[count]
            self._may_lose_s = min(self._may_lose_s, max(losses.values())) - lost_s


class Payoff:
    """Chooses the number of guesses for each step.

    Args:
        most: guesses of one sequence and step at most.
        now: a clock in seconds.
    """

    def __init__(self, most: int, now: Callable[[], float]) -> None:
        self._counts = tuple(_counts(most))
        self._now = now
        self._noted_s: float | None = None
        self._classes: dict[int, _BatchClass] = {}

    def choose(self, num_sequences: int, most: int) -> int:
        """Guesses for each of so many sequences in the coming step, at most `most`; 0: a step without pays more."""
        return self._class_of(num_sequences).choose(most)

    def note(self, count: int, tokens: Mapping[Hashable, int]) -> None:
        """The tokens of a step of single tokens and guesses are there.

        Args:
            count: what was chosen for it.
            tokens: how many each sequence got; one at least.
        """
        before, self._noted_s = self._noted_s, self._now()
        if before is None:
            return
        self._class_of(len(tokens)).note(count, tokens, max(self._noted_s - before, LEAST_S))

    def pass_over(self) -> None:
        """A step that says nothing about guesses has ended: the next one's time begins here."""
        self._noted_s = self._now()

    def _class_of(self, num_sequences: int) -> _BatchClass:
        key = num_sequences.bit_length()
        found = self._classes.get(key)
        if found is None:
            if self._classes:
                found = self._classes[min(self._classes, key=lambda other: abs(other - key))].like()
            else:
                found = _BatchClass({count: _Estimate() for count in self._counts})
            self._classes[key] = found
        return found


def _counts(most: int) -> Iterable[int]:
    """What is tried, in this order: all guesses, none, and halves between."""
    yield most
    yield 0
    while most := most // 2:
        yield most


def _best(estimates: dict[int, _Estimate]) -> int:
    """The one with the shortest time a token; the first in the order of trials while none is known."""
    return max(estimates, key=lambda count: estimates[count].rate or 0.0)
