"""Hidden states of the last few tokens of each KV block, for the layer that reads the one before a token (MTP).

Whoever computes on behind a token needs that token's hidden state: the next chunk of a prompt, the next decode behind
however many drafts were right, and a sequence that shares another's blocks or finds them in the prefix cache. Such
blocks are full, so what is needed is always the last state of a block, or one of the last ones written to it.

H hidden_size, N positions.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Final

import torch
from torch import Tensor

CPU: Final = torch.device("cpu")


class HiddenTails:
    """A ring of hidden states for each block: position p takes place p modulo the ring's size.

    It belongs to the block as its keys do, and so needs no books of sequences. A decode with drafts writes its state
    and one a draft, and the one before them stays, so that a step that failed finds it when it is run again. A chunk
    of a prompt that ends in the block it began in may overwrite it: after a failure, guesses may be worse then.

    Args:
        num_blocks: of the KV cache.
        block_size: tokens a block.
        num_drafts: of one sequence and step at most.
        hidden_size: H.
        dtype: of the states.
        device: of the states; one that is not a CPU reads and writes them by itself.

    Attributes:
        ring: states of a block.
        states: [num_blocks * ring, H].
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_drafts: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> None:
        self._block_size = block_size
        self.ring = ring_size(block_size, num_drafts)
        self.states = torch.zeros(num_blocks * self.ring, hidden_size, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return self.states.nbytes

    def place(self, block_table: Seq[int], position: int) -> int:
        """Where the state of a sequence's position is."""
        block, offset = divmod(position, self._block_size)
        return block_table[block] * self.ring + offset % self.ring

    def last_positions(self, begin: int, end: int) -> Iterator[int]:
        """Of positions that are computed together, the last one in each block."""
        size = self._block_size
        for block in range(begin // size, (end - 1) // size + 1):
            yield min((block + 1) * size, end) - 1

    def read(self, places: list[int]) -> Tensor:
        """A copy of the states, [N, H]."""
        return self.states.index_select(0, torch.tensor(places, dtype=torch.int64))

    def write(self, places: list[int], states_NH: Tensor) -> None:
        """Keep states, each in a place of its own."""
        self.states.index_copy_(0, torch.tensor(places, dtype=torch.int64), states_NH)


def ring_size(block_size: int, num_drafts: int) -> int:
    """States of a block that are kept."""
    return min(block_size, num_drafts + 2)


def tail_bytes(block_size: int, num_drafts: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Bytes of a block's states."""
    return ring_size(block_size, num_drafts) * hidden_size * dtype.itemsize
