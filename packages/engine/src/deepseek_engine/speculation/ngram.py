"""Prompt lookup: what followed the last tokens when they came before is likely to follow them now (Saxena, 2023).

Summaries, edits of code and answers that quote their prompt repeat long stretches of it; nothing is loaded or trained.
"""

from collections.abc import Sequence as Seq
from typing import Final

MAX_CANDIDATES: Final = 8
"""Earlier places that one guess looks at; a text that repeats itself endlessly must not make it slow."""


class NgramIndex:
    """Where a growing sequence's n-grams have come before, kept up by O(1) a new token.

    As in LZ77 compressors, a table leads from `min_n` tokens to the last place that ended in them, and each place to
    the one before it. A guess follows that chain and takes the place that agrees with the end of the sequence for
    longest, up to `max_n` tokens, and of equal ones the latest.

    Args:
        min_n: tokens that have to agree at least.
        max_n: more agreement than this counts for no more.
    """

    def __init__(self, min_n: int, max_n: int) -> None:
        self._min_n = min_n
        self._max_n = max_n
        self._latest: dict[tuple[int, ...], int] = {}  # n-gram to the index after its last occurrence
        self._before: list[int] = []  # the same n-gram's occurrence before; -1 if there is none
        self._num_indexed = 0

    def propose(self, token_ids: Seq[int], num_tokens: int) -> list[int]:
        """The next `num_tokens` tokens as a guess, or none; `token_ids` may only have grown since the last call."""
        self._catch_up(token_ids)
        if len(token_ids) <= self._min_n:
            return []
        place = self._latest.get(tuple(token_ids[-self._min_n :]), -1)
        best, best_length = -1, 0
        for _ in range(MAX_CANDIDATES):
            if place < 0 or best_length == self._max_n:
                break
            length = self._agreement(token_ids, place)
            if length > best_length:
                best, best_length = place, length
            place = self._before[place]
        if best < 0:
            return []
        # A guess may run into its own beginning: the end of a loop goes on as the loop does.
        guess = list(token_ids[best : best + num_tokens])
        period = len(guess)
        while len(guess) < num_tokens:
            guess.append(guess[-period])
        return guess

    def _catch_up(self, token_ids: Seq[int]) -> None:
        """Index all n-grams but the last one, which is what is looked for."""
        size = self._min_n
        for end in range(self._num_indexed, len(token_ids)):
            gram = tuple(token_ids[end - size : end]) if end >= size else ()
            self._before.append(self._latest.get(gram, -1) if gram else -1)
            if gram:
                self._latest[gram] = end
        self._num_indexed = max(self._num_indexed, len(token_ids))

    def _agreement(self, token_ids: Seq[int], place: int) -> int:
        """How many tokens before `place` are those at the end of the sequence."""
        length = self._min_n
        while length < self._max_n and length < place and token_ids[place - 1 - length] == token_ids[-1 - length]:
            length += 1
        return length
