"""The tensors behind the blocks: what each layer keeps of every cached token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek_engine.kv_cache.specs import CacheSpec


class KVCache:
    """`num_blocks * block_size` slots a layer; slot = block * block_size + position within the block.

    Layers may keep different things, by their specs. All begins as zeros, so that a padded slot is never NaN. On a CPU
    that costs nothing: the operating system hands out zeroed pages as slots are first written.
    """

    def __init__(
        self, specs: Sequence[CacheSpec], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        num_slots = num_blocks * block_size
        self._layers = [
            tuple(torch.zeros((num_slots, *shape), dtype=dtype, device=device) for shape in spec.entries)
            for spec in specs
        ]

    def layer(self, index: int) -> tuple[Tensor, ...]:
        """One layer's tensors in the order of its spec, each [slots, *shape]."""
        return self._layers[index]

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)
