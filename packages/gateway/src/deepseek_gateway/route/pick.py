"""Chooses among engines that may take a request: affinity within a bound of load, else the better of two at random.

Sources: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016); power of two choices
(Mitzenmacher, 2001).
"""

import math
from collections.abc import Sequence
from random import Random
from typing import Protocol

from deepseek_gateway.route.rendezvous import score

BOUND = 1.25
"""An engine keeps its own requests up to this much of the mean load."""


class Candidate(Protocol):
    """An engine as the picker sees it."""

    @property
    def seed(self) -> int:
        """The hash of its name."""
        ...

    @property
    def weight(self) -> float:
        """Its share."""
        ...


def pick(candidates: Sequence[Candidate], loads: Sequence[float], key: int | None, random: Random) -> int:
    """The position of one of at least one candidate.

    Args:
        candidates: who may take the request.
        loads: of each, in requests.
        key: the request's affinity; None for none.
        random: for the two choices.
    """
    if len(candidates) == 1:
        return 0
    if key is not None and (owner := _within_bound(candidates, loads, key)) is not None:
        return owner
    first = _weighted(candidates, -1, random)
    second = _weighted(candidates, first, random)
    is_first = loads[first] / candidates[first].weight <= loads[second] / candidates[second].weight
    return first if is_first else second


def _within_bound(candidates: Sequence[Candidate], loads: Sequence[float], key: int) -> int | None:
    """The first in the key's order whose load, with this request, is at most `BOUND` times its share, rounded up."""
    weights = sum([candidate.weight for candidate in candidates])
    share = BOUND * (sum(loads) + 1) / weights
    best, best_score = None, 0.0
    for at, candidate in enumerate(candidates):
        weight = candidate.weight
        if loads[at] + 1 <= math.ceil(share * weight):
            wish = score(key, candidate.seed, weight)
            if wish > best_score:
                best, best_score = at, wish
    return best


def _weighted(candidates: Sequence[Candidate], without: int, random: Random) -> int:
    """One at random by weight, but not the one at `without`."""
    total = sum([candidate.weight for candidate in candidates])
    point = random.random() * (total if without < 0 else total - candidates[without].weight)
    chosen = without
    for at, candidate in enumerate(candidates):
        if at == without:
            continue
        chosen = at
        point -= candidate.weight
        if point < 0:
            break
    return chosen
