"""Rendezvous hashing with weights: which of several engines a key belongs to.

Each pair of key and engine gets a score; the key belongs to the engine with the highest. An engine that leaves moves
only its own keys, one that comes takes only its share, and every gateway node comes to the same result without a word.
"""

import hashlib
import math

_MASK = (1 << 64) - 1


def hash64(data: bytes) -> int:
    """64 bits of BLAKE2b: the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def score(key: int, seed: int, weight: float) -> float:
    """How much a key wants the engine with this seed (the hash of its name); weights are shares of all keys.

    Source: Schindelhauer and Schomaker, "Weighted distributed hash tables" (SPAA 2005): -weight / ln(u).
    """
    # splitmix64 of the pair: as even as a hash, at a fifth of its price.
    mixed = (key ^ seed) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    mixed ^= mixed >> 31
    return -weight / math.log((mixed + 1) / (_MASK + 3))
