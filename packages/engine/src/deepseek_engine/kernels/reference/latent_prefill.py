"""Attention of prefill chunks over cached latents, one chunk at a time, expanded, from the definition.

T tokens, N heads, C kv_lora_rank, D qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim.
"""

import torch
from torch import Tensor

from deepseek_engine.kernels.latent_prefill_plan import LatentPrefillPlan
from deepseek_engine.model_config import LatentConfig


def latent_prefill_attention(
    q: Tensor, cache: Tensor, kv_b: Tensor, plan: LatentPrefillPlan, config: LatentConfig
) -> Tensor:
    """[T, N, D + R] queries to [T, N * V]; of the plan only the chunks are read."""
    chunks, rank, nope = plan.chunks, config.kv_lora_rank, config.qk_nope_head_dim
    out = torch.zeros(q.shape[0], q.shape[1], config.v_head_dim, dtype=torch.float64, device=q.device)
    of_heads = kv_b.double().view(q.shape[1], -1, rank)
    key_b, value_b = of_heads[:, :nope], of_heads[:, nope:]
    for chunk, context_len in enumerate(chunks.context_lens):
        tokens = torch.arange(context_len, device=q.device)
        table = chunks.block_tables[chunk]
        slots = table[tokens // chunks.block_size].long() * chunks.block_size + tokens % chunks.block_size
        cached = cache[slots].double()
        latents, rope = cached[:, :rank], cached[:, rank:]
        rows = slice(chunks.first_rows[chunk], chunks.first_rows[chunk + 1])
        scores = torch.einsum("tnd,nde,ke->ntk", q[rows, :, :nope].double(), key_b, latents)
        scores += torch.einsum("tnr,kr->ntk", q[rows, :, nope:].double(), rope)
        positions = tokens[context_len - chunks.num_new(chunk) :, None]
        is_seen = (tokens <= positions) | (tokens < chunks.prefix_len(chunk))
        weights = (scores * config.softmax_scale).masked_fill(~is_seen, float("-inf")).softmax(dim=-1)
        out[rows] = torch.einsum("ntk,nvc,kc->tnv", weights, value_b, latents)
    return out.flatten(1).to(q.dtype)
