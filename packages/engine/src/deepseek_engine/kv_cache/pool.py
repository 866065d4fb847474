"""The tensors behind the blocks: keys and values of every cached token, layer by layer."""

import torch
from torch import Tensor

from deepseek_engine.model_config import ModelConfig


class KVCache:
    """`num_blocks * block_size` slots a layer; slot = block * block_size + position within the block.

    All begins as zeros, so that a padded slot is never NaN. On a CPU that costs nothing: the operating system hands out
    zeroed pages as slots are first written.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        shape = (config.num_hidden_layers, num_blocks * block_size, config.num_key_value_heads, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each [slots, num_key_value_heads, head_dim]."""
        return self._keys[index], self._values[index]

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return self._keys.nbytes + self._values.nbytes
