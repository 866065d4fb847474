"""How many tokens a step may compute: less after memory ran out, then slowly more again."""

from typing import Final

RAISE_AFTER_STEPS: Final = 32
RAISES_TO_FULL: Final = 16


class TokenBudget:
    """The budget of one step.

    Args:
        full: tokens in one step at most.
    """

    def __init__(self, full: int) -> None:
        self.full = full
        self.tokens = full
        self._num_good_steps = 0

    def shrink(self, num_tokens: int) -> bool:
        """A step of this many tokens ran out of memory: allow half of it. False if there is nothing left to halve."""
        self._num_good_steps = 0
        if num_tokens <= 1:
            return False
        self.tokens = min(self.tokens, num_tokens // 2)
        return True

    def note_success(self) -> None:
        """A step was computed; after enough of them the budget rises by a sixteenth of the full one, or doubles."""
        if self.tokens == self.full:
            return
        self._num_good_steps += 1
        if self._num_good_steps >= RAISE_AFTER_STEPS:
            self._num_good_steps = 0
            # From a few tokens up a sixteenth may be a hundred times as much, and run out of memory at once again.
            self.tokens = min(self.full, self.tokens + max(1, min(self.tokens, self.full // RAISES_TO_FULL)))
