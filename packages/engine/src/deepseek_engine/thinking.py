"""Reasoning in an answer, as tokens: where it begins and ends, how long it is, and what must come when it is too long.

Text and tool parsers look at reasoning as text, in the API process. The core needs it as tokens, for what must happen
before the next one is chosen: a budget closes the reasoning, and a grammar begins behind it.
"""

from deepseek_engine.messages import ThinkingMarkers


class ThinkingState:
    """One answer's reasoning. It opens at most once: in the prompt, or by the answer's own opening tokens.

    Args:
        markers: the model's tokens around reasoning, and whether the prompt ends inside it.
        budget: tokens of reasoning at most, markers not counted; None is no limit.
    """

    def __init__(self, markers: ThinkingMarkers, budget: int | None = None) -> None:
        self._start = _Matcher(markers.start_token_ids)
        self._end = _Matcher(markers.end_token_ids)
        self._budget = budget
        self._num_tokens = 0
        self.is_open: bool = markers.is_open
        self.is_closed: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of reasoning so far, without its markers."""
        return self._num_tokens - self._end.num_matched

    @property
    def forced_token_id(self) -> int | None:
        """The token that has to come next, as the budget is used up; None while the choice is free.

        An end marker of several tokens that the model has begun with the last of the budget is continued.
        """
        if self._budget is None or not self.is_open or self._num_tokens < self._budget:
            return None
        return self._end.next_token_id

    @property
    def max_drafts(self) -> int | None:
        """Draft tokens behind which no token can be forced; None is any number."""
        if self._budget is None or self.is_closed:
            return None
        return max(self._budget - 1 - self._num_tokens, 0)

    def push(self, token_id: int) -> None:
        """The answer has grown by a token."""
        if self.is_closed:
            return
        if not self.is_open:
            self.is_open = self._start.push(token_id)
            return
        self._num_tokens += 1
        if self._end.push(token_id):
            self.is_open, self.is_closed = False, True


class _Matcher:
    """Finds one token sequence in a stream; `num_matched` of its tokens end the stream so far. Never found if empty."""

    def __init__(self, wanted: tuple[int, ...]) -> None:
        self._wanted = wanted
        self.num_matched = 0

    @property
    def next_token_id(self) -> int:
        """What would bring the match forward."""
        return self._wanted[self.num_matched]

    def push(self, token_id: int) -> bool:
        """Whether the token completes the sequence, after which no other may come."""
        if not self._wanted:
            return False
        seen = (*self._wanted[: self.num_matched], token_id)
        # Markers are a few tokens, so the longest prefix that ends here is simply looked for.
        self.num_matched = next(
            length for length in range(len(seen), -1, -1) if seen[len(seen) - length :] == self._wanted[:length]
        )
        return self.num_matched == len(self._wanted)
