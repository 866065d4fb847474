"""Grouped-query attention (arXiv 2305.13245) with rotary positions, over the paged cache.

T tokens, H hidden_size, D head_dim.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata, attend
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.rotary import rotate
from deepseek_engine.model_config import ModelConfig


class GroupedQueryAttention(nn.Module):
    """Queries, keys and values come from one fused projection; queries and keys are rotated together."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        query_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        bias = config.attention_bias
        self.qkv = Linear(config.hidden_size, (query_width, kv_width, kv_width), bias=bias, dtype=dtype)
        self.output = Linear(query_width, (config.hidden_size,), bias=bias, dtype=dtype)

    def forward(
        self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, Tensor], metadata: AttentionMetadata
    ) -> Tensor:
        """[T, H] to [T, H]; the new keys and values are in the cache afterwards."""
        heads = self.qkv(x_TH).view(x_TH.shape[0], -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        rotated = rotate(heads[:, :num_rotated], cos_sin)
        q, k = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        return self.output(attend(q, k, heads[:, num_rotated:], cache, metadata))
