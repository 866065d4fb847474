"""Where guesses come from: what was said before, or a layer of the model itself."""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from deepseek_engine.errors import EngineDeadError
from deepseek_engine.runner_protocol import Drafter
from deepseek_engine.sequence import Sequence
from deepseek_engine.speculation.ngram import NgramIndex

logger = logging.getLogger(__name__)

PAUSE_STEPS: Final = 32
"""Steps without guesses after a failure to make them: one that comes every time costs little then."""

Reserve = Callable[[Sequence, int], int]
"""Gets cache slots for a sequence's draft tokens without taking any from others; says how many of them have one."""


class DraftMethod(Protocol):
    """A way to guess tokens."""

    def draft(self, wanted: Seq[tuple[Sequence, int]], budget: int, reserve: Reserve) -> list[list[int]]:
        """Guesses for each sequence, as many as asked for or fewer.

        Args:
            wanted: sequences that decode in the coming step, and how many guesses each may have.
            budget: guesses of all together at most; who comes first is served first.
            reserve: says how many of a sequence's guesses can be verified.
        """
        ...


class NgramDrafts:
    """Prompt lookup, with an index for each sequence.

    Args:
        min_n: tokens that have to have come before.
        max_n: longest agreement that is looked for.
    """

    def __init__(self, min_n: int, max_n: int) -> None:
        self._min_n, self._max_n = min_n, max_n
        self._indices: WeakKeyDictionary[Sequence, NgramIndex] = WeakKeyDictionary()

    def draft(self, wanted: Seq[tuple[Sequence, int]], budget: int, reserve: Reserve) -> list[list[int]]:
        """See `DraftMethod`. Slots are taken for what was found alone."""
        found: list[list[int]] = []
        for sequence, limit in wanted:
            limit = min(limit, budget)
            drafts = self._index(sequence).propose(sequence.token_ids, limit) if limit > 0 else []
            drafts = drafts[: reserve(sequence, len(drafts))] if drafts else []
            budget -= len(drafts)
            found.append(drafts)
        return found

    def _index(self, sequence: Sequence) -> NgramIndex:
        index = self._indices.get(sequence)
        if index is None:
            index = self._indices[sequence] = NgramIndex(self._min_n, self._max_n)
        return index


class ModelDrafts:
    """What the runner's own layer for multi-token prediction says, for all sequences at once.

    A guess that cannot be made costs no answer: failures are logged, and guessing pauses.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._pause_steps = 0

    def draft(self, wanted: Seq[tuple[Sequence, int]], budget: int, reserve: Reserve) -> list[list[int]]:
        """See `DraftMethod`. Slots are taken first: guesses behind the first are made with them."""
        if self._pause_steps:
            self._pause_steps -= 1
            return [[] for _ in wanted]
        counted: list[tuple[Sequence, int]] = []
        for sequence, limit in wanted:
            # The layer reads the hidden state of the token before the last.
            limit = min(limit, budget) if len(sequence.token_ids) > 1 else 0
            count = reserve(sequence, limit) if limit > 0 else 0
            budget -= count
            counted.append((sequence, count))
        if not any(count for _, count in counted):
            return [[] for _ in wanted]
        try:
            return self._drafter.draft(counted)
        except EngineDeadError:
            raise
        except Exception:  # whatever a model or a device may raise
            logger.exception("drafts for %d sequences failed: the next %d steps have none", len(wanted), PAUSE_STEPS)
            self._pause_steps = PAUSE_STEPS
            return [[] for _ in wanted]
