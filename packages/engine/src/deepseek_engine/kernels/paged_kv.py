"""What attention kernels take beside their activations: a layer's cache, and the norms of query and key heads.

S slots, K key/value heads, D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedKV:
    """One layer's keys and values; slot = block * block_size + position within the block.

    Attributes:
        keys: [S, K, D], contiguous; INT8 with scales, else the activations' dtype.
        values: like keys.
        block_size: tokens a block.
        key_scales: [S, K], float32: a key is its INT8 numbers times this. None where keys are not quantised.
        value_scales: like key_scales.
    """

    keys: Tensor
    values: Tensor
    block_size: int
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.keys.is_contiguous(), "a slot is one run of memory"
        assert self.values.is_contiguous(), "a slot is one run of memory"
        assert (self.keys.dtype == torch.int8) == (self.key_scales is not None) == (self.value_scales is not None)

    @classmethod
    def of(cls, layer: Sequence[Tensor], block_size: int) -> Self:
        """What `KVCache.layer` gives: keys and values, and their scales if they are INT8."""
        return cls(layer[0], layer[1], block_size, *layer[2:])

    @property
    def num_heads(self) -> int:
        """Key/value heads."""
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.keys.shape[2]

    @property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Scales of keys and of values, for a launcher: any tensors where there are none, since they are not read."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return self.key_scales, self.value_scales


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of each query head and each key head before they are rotated (Qwen3).

    Attributes:
        query: [D], weights.
        key: [D], weights.
        eps: added to the mean square.
    """

    query: Tensor
    key: Tensor
    eps: float
