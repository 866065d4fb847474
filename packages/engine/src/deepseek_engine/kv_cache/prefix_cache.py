"""Which block holds the keys and values of which tokens, so that equal prompt beginnings are computed once.

A block is named by a SHA-256 chain: the digest of the block before it, then its own token ids. The chain starts from
the adapter's number and the request's salt, so that one salt's entries can be neither found nor timed through another
(vLLM's automatic prefix caching), and an adapter that is loaded again never meets keys of the one before.
"""

import hashlib
import struct

from deepseek_engine.sequence import Sequence


class PrefixCache:
    """Digests of full, computed blocks. The allocator says when a block's content is gone."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._packing = struct.Struct(f"<{block_size}I")
        self._block_of_digest: dict[bytes, int] = {}
        self._digest_of_block: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of_digest)

    def match(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's leading tokens; at least one token is always left to compute."""
        blocks: list[int] = []
        for index in range((len(sequence.token_ids) - 1) // self._block_size):
            block = self._block_of_digest.get(self._digest(sequence, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def register(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Enter the sequence's computed blocks from `start` to `end` of its block table; returns those that are new."""
        entered: list[int] = []
        for index in range(start, end):
            digest, block = self._digest(sequence, index), sequence.block_table[index]
            # Two sequences may have computed the same tokens side by side: the first one's block stays the entry.
            if digest not in self._block_of_digest:
                assert block not in self._digest_of_block, f"block {block} was written twice"
                self._block_of_digest[digest] = block
                self._digest_of_block[block] = digest
                entered.append(block)
        return entered

    def forget(self, block: int) -> None:
        """Drop the entry of a block that is about to be overwritten."""
        del self._block_of_digest[self._digest_of_block.pop(block)]

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """Name of one full block; each is hashed once in a sequence's life."""
        digests, size = sequence.block_digests, self._block_size
        while len(digests) <= index:
            parent = digests[-1] if digests else _root(sequence)
            first = len(digests) * size
            tokens = self._packing.pack(*sequence.token_ids[first : first + size])
            digests.append(hashlib.sha256(parent + tokens).digest())
        return digests[index]


def _root(sequence: Sequence) -> bytes:
    return hashlib.sha256(sequence.adapter_id.to_bytes(8, "little") + sequence.cache_salt.encode()).digest()
