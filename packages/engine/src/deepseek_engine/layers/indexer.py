"""The indexer of DeepSeek Sparse Attention (DeepSeek-V3.2): it decides which tokens each query attends to.

T tokens, H hidden_size, N index heads, D index_head_dim.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata
from deepseek_engine.kernels.torch_key_selection import select_keys
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.norm import LayerNorm
from deepseek_engine.layers.rotary import rotate
from deepseek_engine.model_config import IndexerConfig, LatentConfig

KEY_NORM_EPS = 1e-6


class Indexer(nn.Module):
    """Small queries from the compressed query, one small key a token, and a weight for each head.

    The first features rotate in halves, while latent attention next to it rotates neighbouring pairs. DeepSeek's own
    code also applies a Hadamard transform to queries and keys; that leaves their products as they are.
    """

    def __init__(self, config: LatentConfig, indexer: IndexerConfig, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.q_lora_rank is not None, "the indexer reads the compressed query"
        self.config = indexer
        self.rotated_dim = config.qk_rope_head_dim
        num_heads, dim = indexer.index_n_heads, indexer.index_head_dim
        self.query = Linear(config.q_lora_rank, (num_heads * dim,), bias=False, dtype=dtype)
        self.key = Linear(hidden_size, (dim,), bias=False, dtype=dtype)
        self.key_norm = LayerNorm(dim, KEY_NORM_EPS, dtype)
        # In float32 like a router: a choice that tips over changes what a token sees.
        self.head_weights = nn.Parameter(torch.empty(num_heads, hidden_size), requires_grad=False)

    def forward(
        self, x_TH: Tensor, compressed_q: Tensor, cos_sin: Tensor, cache: Tensor, metadata: AttentionMetadata
    ) -> AttentionMetadata:
        """The step's metadata, with masks that hide what was not chosen; the new index keys are in the cache."""
        num_heads, dim = self.config.index_n_heads, self.config.index_head_dim
        q_TND = self.query(compressed_q).view(-1, num_heads, dim)
        k_TD = self.key_norm(self.key(x_TH))
        heads = self._rotate(torch.cat((q_TND, k_TD[:, None]), dim=1), cos_sin)
        weights_TN = (x_TH.float() @ self.head_weights.T) * (num_heads * dim) ** -0.5
        return select_keys(heads[:, :-1], weights_TN, heads[:, -1], cache, metadata, self.config.index_topk)

    def store(self, x_TH: Tensor, cos_sin: Tensor, cache: Tensor, slots_T: Tensor) -> None:
        """Put the tokens' index keys into the cache, and choose nothing."""
        k_TD = self.key_norm(self.key(x_TH))
        cache.index_copy_(0, slots_T, self._rotate(k_TD[:, None], cos_sin)[:, 0])

    def _rotate(self, heads: Tensor, cos_sin: Tensor) -> Tensor:
        rotated, rest = torch.split(heads, [self.rotated_dim, self.config.index_head_dim - self.rotated_dim], dim=-1)
        return torch.cat((rotate(rotated, cos_sin), rest), dim=-1)
