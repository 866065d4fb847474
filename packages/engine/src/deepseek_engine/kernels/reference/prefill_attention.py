"""What `kernels/triton/prefill_attention.py` does, in plain PyTorch and float64, a sequence at a time.

T tokens, S sequences, N query heads, D head_dim, M blocks of a sequence.
"""

from typing import cast

import torch
from torch import Tensor

from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.reference.decode_attention import attend, cached_tokens


def prefill_attention(
    queries: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    prefix_lens: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """Attend with a chunk of new tokens of each sequence; the arguments are the kernel's.

    Returns:
        [T, N, D]; zeros for rows of no sequence.
    """
    out = torch.zeros_like(queries)
    begins, contexts = (cast("list[int]", x.tolist()) for x in (cu_seqlens_q, context_lens))
    prefixes = [0] * len(contexts) if prefix_lens is None else cast("list[int]", prefix_lens.tolist())
    for index, (context, prefix) in enumerate(zip(contexts, prefixes, strict=True)):
        rows = slice(begins[index], begins[index + 1])
        keys, values = cached_tokens(kv, block_tables[index], context)
        tokens = torch.arange(context, device=queries.device)
        positions = tokens[context - (rows.stop - rows.start) :, None]
        is_seen = (tokens <= positions) | ((positions < prefix) & (tokens < prefix))
        out[rows] = attend(queries[rows], keys, values, scale, is_seen).to(out.dtype)
    return out
