"""SequenceGrammar: one answer's place in its grammar, token by token."""

import logging
import time
from typing import Final

from deepseek_engine.grammar.protocol import Grammar, TokenMask
from deepseek_engine.grammar.source import GrammarUse

logger = logging.getLogger(__name__)

FREE_S_PER_TOKEN: Final = 0.005
MAX_DEBT_S: Final = 0.25
"""A token may take FREE_S_PER_TOKEN of processor time; what a grammar takes over that adds up, to this much.

Masks take microseconds. An ambiguous grammar (`root ::= root root | "a"`) takes more with each token, without end, and
what runs beside it would feel that.
"""


class SequenceGrammar:
    """Masks and checks the tokens of one answer. Preemption does not touch it: computing again samples nothing again.

    Args:
        grammar: compiled.
        use: the request's.
        eos_token_ids: allowed where the grammar is complete.
        stop_token_ids: every token that ends the answer, which `min_tokens` puts off.

    Attributes:
        failure: why the answer cannot go on; None while it can.
    """

    def __init__(
        self, grammar: Grammar, use: GrammarUse, eos_token_ids: tuple[int, ...], stop_token_ids: frozenset[int]
    ) -> None:
        self._matcher = grammar.matcher(eos_token_ids)
        self._begin_after = use.begin_after
        self._tail: tuple[int, ...] = ()
        self._stop_token_ids = stop_token_ids
        self._eos_token_ids = eos_token_ids
        # An answer that ended within its reasoning would be empty, which few grammars allow.
        self._reasoning_mask = grammar.mask_without(frozenset(eos_token_ids)) if use.begin_after else None
        self._debt_s = 0.0
        self.failure: str | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the reasoning, if there is one, is over."""
        return not self._begin_after

    def next_mask(self, *, may_stop: bool) -> TokenMask | None:
        """The tokens that may come next; None if there is none, and `failure` says why.

        Args:
            may_stop: whether the answer is long enough to end; where the grammar allows only its end, it ends anyway.
        """
        if not self.has_begun:
            return self._reasoning_mask
        started = time.thread_time()
        try:
            mask = self._matcher.next_mask(frozenset() if may_stop else self._stop_token_ids)
        except Exception as error:  # whatever the library may raise ends this answer only
            self._break(error)
            return None
        self._charge(time.thread_time() - started)
        if mask is None:
            self.failure = "the grammar has come to where no token of the vocabulary fits"
        return mask

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen; sets `failure` if the grammar does not allow it."""
        if self.failure is not None:
            return
        if not self.has_begun:
            self._tail = (*self._tail, token_id)[-len(self._begin_after) :]
            if self._tail == self._begin_after:
                self._begin_after = ()
            return
        if token_id in self._stop_token_ids and token_id not in self._eos_token_ids:
            return  # the caller's own stop token ends the answer wherever it is
        started = time.thread_time()
        try:
            is_allowed = self._matcher.accept(token_id)
        except Exception as error:  # as above
            self._break(error)
            return
        self._charge(time.thread_time() - started)
        if not is_allowed:
            self.failure = f"token {token_id} was chosen, which the grammar does not allow"

    def _break(self, error: Exception) -> None:
        logger.error("a grammar failed; its answer ends with an error", exc_info=error)
        self.failure = f"the grammar could not be followed: {error!r}"

    def _charge(self, spent_s: float) -> None:
        self._debt_s = max(0.0, self._debt_s + spent_s - FREE_S_PER_TOKEN / 2)
        if self._debt_s > MAX_DEBT_S:
            self.failure = "the grammar takes too long a token: it is too ambiguous, write it with fewer choices"
