"""The tensors behind the blocks: what each layer keeps of every cached token."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.kv_cache.specs import CacheSpec

CACHE_LINE_BYTES: Final = 64
"""What a page of keys should begin at, as torch's own memory does: kernels read whole lines."""


class KVCache:
    """`num_blocks * block_size` slots a layer; slot = block * block_size + position within the block.

    Layers may keep different things, by their specs. All begins as zeros, so that a padded slot is never NaN. An INT8
    cache has a float32 scale beside each head's numbers: the largest magnitude of a head is 127 of them.
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_int8: bool = False,
    ) -> None:
        self.block_size = block_size
        num_slots = num_blocks * block_size
        self._layers: list[tuple[Tensor, ...]] = []
        for spec in specs:
            entries = [_zeros((num_slots, *shape), torch.int8 if is_int8 else dtype, device) for shape in spec.entries]
            scales = [_zeros((num_slots, *shape[:-1]), torch.float32, device) for shape in spec.entries if is_int8]
            self._layers.append((*entries, *scales))

    def layer(self, index: int) -> tuple[Tensor, ...]:
        """One layer's tensors in the order of its spec, each [slots, *shape]; then their scales, if it is INT8."""
        return self._layers[index]

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the system hands their pages out as they are first written (`torch.zeros` writes them all)."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    room = torch.from_numpy(np.zeros(num_bytes + CACHE_LINE_BYTES, dtype=np.uint8))
    skipped = -room.data_ptr() % CACHE_LINE_BYTES
    return room[skipped : skipped + num_bytes].view(dtype).view(*shape)
