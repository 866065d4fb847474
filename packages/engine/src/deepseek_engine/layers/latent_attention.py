"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), absorbed, over the paged cache of latents.

T tokens, H hidden_size, N heads, C kv_lora_rank, R qk_rope_head_dim.

Keys and values of all heads are projections of one latent a token. A score is the same whether the key is expanded or
its projection is applied to the query, so only the latent is cached: C + R numbers a token, not N keys and values.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata, attend_latent
from deepseek_engine.layers.indexer import Indexer
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.norm import RMSNorm
from deepseek_engine.layers.rotary import rotate, split_pairs
from deepseek_engine.model_config import LatentConfig

LOW_RANK_NORM_EPS = 1e-6
"""Of the norms between the two halves of a low-rank projection, whatever `rms_norm_eps` says."""


class LatentAttention(nn.Module):
    """The projections that read the hidden state are fused: the query's (or its compression's), then the latent's.

    `kv_b` holds a head's key projection [qk_nope_head_dim, C] above its value projection [v_head_dim, C].
    """

    def __init__(self, config: LatentConfig, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        heads, q_rank = config.num_attention_heads, config.q_lora_rank
        query_width = heads * config.qk_head_dim
        self.input = Linear(
            hidden_size, (q_rank or query_width, config.latent_dim), bias=config.attention_bias, dtype=dtype
        )
        self.q_norm = self.q_b = None
        if q_rank is not None:
            self.q_norm = RMSNorm(q_rank, LOW_RANK_NORM_EPS, dtype)
            self.q_b = Linear(q_rank, (query_width,), bias=False, dtype=dtype)
        self.kv_norm = RMSNorm(config.kv_lora_rank, LOW_RANK_NORM_EPS, dtype)
        self.kv_b = nn.Parameter(
            torch.empty(heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank, dtype=dtype),
            requires_grad=False,
        )
        self.output = Linear(heads * config.v_head_dim, (hidden_size,), bias=config.attention_bias, dtype=dtype)
        self.indexer = None if config.indexer is None else Indexer(config, config.indexer, hidden_size, dtype)

    def forward(self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, ...], metadata: AttentionMetadata) -> Tensor:
        """[T, H] to [T, H]; the new latents are in the cache afterwards."""
        config = self.config
        compressed_q, latent_TL = self.input.split(self.input(x_TH))
        if self.q_norm is not None and self.q_b is not None:
            compressed_q = self.q_norm(compressed_q)
            q = self.q_b(compressed_q)
        else:
            q = compressed_q
        if self.indexer is not None:
            metadata = self.indexer(x_TH, compressed_q, cos_sin, cache[1], metadata)
        q_TND = q.view(x_TH.shape[0], config.num_attention_heads, config.qk_head_dim)
        q_nope, q_rope = torch.split(q_TND, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        latent, k_rope = torch.split(latent_TL, [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        rotated = self._rotate(torch.cat((q_rope, k_rope[:, None]), dim=1), cos_sin)

        key_b, value_b = self.folded()
        query = torch.cat((per_head_linear(q_nope, key_b), rotated[:, :-1]), dim=-1)
        stored = torch.cat((self.kv_norm(latent), rotated[:, -1]), dim=-1)
        attended = attend_latent(query, stored, cache[0], metadata, config.softmax_scale, config.kv_lora_rank)
        return self.output(per_head_linear(attended, value_b.transpose(1, 2)).flatten(1))

    def store(self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, ...], slots_T: Tensor) -> None:
        """Put the tokens' latents into the cache, and attend to nothing."""
        config = self.config
        _, latent_TL = self.input.split(self.input(x_TH))
        latent, k_rope = torch.split(latent_TL, [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        rotated = self._rotate(k_rope[:, None], cos_sin)[:, 0]
        cache[0].index_copy_(0, slots_T, torch.cat((self.kv_norm(latent), rotated), dim=-1))
        if self.indexer is not None:
            self.indexer.store(x_TH, cos_sin, cache[1], slots_T)

    def _rotate(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        return rotate(split_pairs(x) if self.config.rope_interleave else x, cos_sin)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Each head's key projection, [N, qk_nope_head_dim, C], and value projection, [N, v_head_dim, C]."""
        config = self.config
        of_heads = self.kv_b.view(config.num_attention_heads, -1, config.kv_lora_rank)
        return of_heads[:, : config.qk_nope_head_dim], of_heads[:, config.qk_nope_head_dim :]


def per_head_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's features times its own matrix: [T, N, in] and [N, in, out] to [T, N, out].

    A single row goes as two, for the reason that `linear` gives.
    """
    if x.shape[0] == 1 and x.dtype is torch.bfloat16:
        return torch.bmm(x.repeat(2, 1, 1).transpose(0, 1), weight).transpose(0, 1)[:1]
    return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)
