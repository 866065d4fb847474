"""Rendezvous hashing with weights: which of several engines a key belongs to.

Each pair of key and engine gets a score; the key belongs to the engine with the highest. An engine that leaves moves
only its own keys, one that comes takes only its share, and every gateway node comes to the same result without a word.
"""

import hashlib
import math

_MASK = (1 << 32) - 1


def hash32(data: bytes) -> int:
    """32 bits of BLAKE2b: the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")


def score(key: int, seed: int, weight: float) -> float:
    """How much a key wants the engine with this seed (the hash of its name); weights are shares of all keys.

    Source: Schindelhauer and Schomaker, "Weighted distributed hash tables" (SPAA 2005): -weight / ln(u).
    """
    # The finalizer of MurmurHash3 over the pair: as even as a hash, at a fraction of its price.
    mixed = key ^ seed
    mixed = ((mixed ^ (mixed >> 16)) * 0x85EBCA6B) & _MASK
    mixed = ((mixed ^ (mixed >> 13)) * 0xC2B2AE35) & _MASK
    mixed ^= mixed >> 16
    return -weight / math.log((mixed + 1) / 4294967298)
