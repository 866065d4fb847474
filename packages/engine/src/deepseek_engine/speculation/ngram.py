"""Prompt lookup: what followed the last tokens when they came before is likely to follow them now (Saxena, 2023).

Summaries, edits of code and answers that quote their prompt repeat long stretches of it; nothing is loaded or trained.
"""

from array import array
from collections.abc import Sequence as Seq
from typing import Final

MAX_CANDIDATES: Final = 8
"""Earlier places that one guess looks at; a text that repeats itself endlessly must not make it slow."""
MAX_STRANGERS: Final = 16
"""Places of other n-grams with the same hash that one guess passes by; nor must one that was made to collide."""
MIN_SLOTS: Final = 64


class NgramIndex:
    """Where a growing sequence's n-grams have come before, kept up by O(1) a new token, in 6 to 20 bytes of it.

    As in LZ77 compressors, a table leads from the hash of `min_n` tokens to the last place that ended in them, and each
    place to the one before it. A guess follows that chain and takes the place that agrees with the end of the sequence
    for longest, up to `max_n` tokens, and of equal ones the latest.

    Args:
        min_n: tokens that have to agree at least.
        max_n: more agreement than this counts for no more.
    """

    def __init__(self, min_n: int, max_n: int) -> None:
        self._min_n = min_n
        self._max_n = max_n
        self._latest = array("i")  # by hash: the index after an n-gram's last occurrence; -1 if there is none
        self._before = array("i")  # of each index: the one of the occurrence before

    def propose(self, token_ids: Seq[int], num_tokens: int) -> list[int]:
        """The next `num_tokens` tokens as a guess, or none; `token_ids` may only have grown since the last call."""
        if len(token_ids) <= self._min_n:
            return []
        self._catch_up(token_ids)
        size, before = self._min_n, self._before
        last = token_ids[-size:]
        place = self._latest[hash(tuple(last)) & (len(self._latest) - 1)]
        best, best_length = -1, 0
        num_candidates = num_strangers = 0
        while place >= 0 and num_candidates < MAX_CANDIDATES and num_strangers < MAX_STRANGERS:
            if token_ids[place - size : place] != last:
                num_strangers += 1
            else:
                num_candidates += 1
                length = self._agreement(token_ids, place)
                if length > best_length:
                    best, best_length = place, length
                    if length == self._max_n:
                        break
            place = before[place]
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
        size, before, num_tokens = self._min_n, self._before, len(token_ids)
        if num_tokens > 2 * len(self._latest):  # anew, with room for more
            self._latest = array("i", [-1]) * max(1 << (2 * num_tokens).bit_length(), MIN_SLOTS)
            before[:] = array("i", [-1]) * size  # no n-gram ends there
        latest, mask = self._latest, len(self._latest) - 1
        for end in range(len(before), num_tokens):
            slot = hash(tuple(token_ids[end - size : end])) & mask
            before.append(latest[slot])
            latest[slot] = end

    def _agreement(self, token_ids: Seq[int], place: int) -> int:
        """How many tokens before `place` are those at the end of the sequence."""
        length = self._min_n
        while length < self._max_n and length < place and token_ids[place - 1 - length] == token_ids[-1 - length]:
            length += 1
        return length
