"""Chooses among engines that may take a request: affinity within a bound of load, else the better of two at random.

Sources: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016); power of two choices
(Mitzenmacher, 2001).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from deepseek_gateway.route.rendezvous import score

BOUND = 1.25
"""An engine keeps its own requests up to this much of the mean load."""

Item = TypeVar("Item")


@dataclass(slots=True)
class Candidate(Generic[Item]):
    """An engine as the picker sees it: `seed` is the hash of its name, `load` is for its weight."""

    item: Item
    seed: int
    weight: float
    load: float


def pick(candidates: Sequence[Candidate[Item]], key: int | None, random: Random) -> Candidate[Item]:
    """One of at least one candidate.

    Args:
        candidates: who may take the request.
        key: its affinity; None for none.
        random: for the two choices, and for ties.
    """
    if len(candidates) == 1:
        return candidates[0]
    if key is not None and (owner := _within_bound(candidates, key)) is not None:
        return owner
    first, second = _two(candidates, random)
    return first if first.load <= second.load else second


def _within_bound(candidates: Sequence[Candidate[Item]], key: int) -> Candidate[Item] | None:
    """The first in the key's order whose load, with this request, is at most `BOUND` times the mean, rounded up."""
    weights = sum(candidate.weight for candidate in candidates)
    requests = sum(candidate.load * candidate.weight for candidate in candidates) + 1
    scale = BOUND * requests / weights
    best, best_score = None, 0.0
    for candidate in candidates:
        # In requests: an engine of half the weight has half the bound.
        if candidate.load * candidate.weight + 1 <= math.ceil(scale * candidate.weight):
            wish = score(key, candidate.seed, candidate.weight)
            if best is None or wish > best_score:
                best, best_score = candidate, wish
    return best


def _two(candidates: Sequence[Candidate[Item]], random: Random) -> tuple[Candidate[Item], Candidate[Item]]:
    """Two different candidates by their weights, in random order."""
    first = _weighted(candidates, None, random)
    return first, _weighted(candidates, first, random)


def _weighted(
    candidates: Sequence[Candidate[Item]], without: Candidate[Item] | None, random: Random
) -> Candidate[Item]:
    point = random.random() * (sum(one.weight for one in candidates) - (without.weight if without is not None else 0))
    chosen = None
    for candidate in candidates:
        if candidate is without:
            continue
        chosen = candidate
        point -= candidate.weight
        if point < 0:
            break
    assert chosen is not None
    return chosen
