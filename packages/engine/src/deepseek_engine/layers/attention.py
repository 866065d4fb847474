"""Grouped-query attention (arXiv 2305.13245) with rotary positions, over the paged cache.

T tokens, H hidden_size, D head_dim.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata, attend
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.norm import RMSNorm
from deepseek_engine.layers.rotary import rotate
from deepseek_engine.model_config import GroupedQueryConfig


class GroupedQueryAttention(nn.Module):
    """Queries, keys and values come from one fused projection; queries and keys are rotated together."""

    def __init__(self, config: GroupedQueryConfig, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.kv_replicas = config.head_dim, config.kv_replicas
        query_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv = Linear(hidden_size, (query_width, kv_width, kv_width), bias=config.qkv_bias, dtype=dtype)
        self.output = Linear(query_width, (hidden_size,), bias=config.output_bias, dtype=dtype)
        self.q_norm = self.k_norm = None
        if config.qk_norm_eps is not None:
            self.q_norm = RMSNorm(self.head_dim, config.qk_norm_eps, dtype)
            self.k_norm = RMSNorm(self.head_dim, config.qk_norm_eps, dtype)

    def forward(self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, ...], metadata: AttentionMetadata) -> Tensor:
        """[T, H] to [T, H]; the new keys and values are in the cache afterwards."""
        heads = self.qkv(x_TH).view(x_TH.shape[0], -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        queries_keys, values = heads[:, :num_rotated], heads[:, num_rotated:]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = queries_keys[:, : self.num_heads], queries_keys[:, self.num_heads :]
            queries_keys = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        rotated = rotate(queries_keys, cos_sin)
        q, k = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        return self.output(attend(q, k, values, (cache[0], cache[1]), metadata))
