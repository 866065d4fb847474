"""Causal attention of whole prompts of which nothing was cached: torch's own kernels read keys and values side by side.

T tokens, S sequences, L tokens of each, N query heads, K key/value heads, D head_dim. For CUDA devices.
"""

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Versions that have no such argument take grouped heads as they are."""


def varlen_prefill_attention(
    queries: Tensor, keys: Tensor, values: Tensor, cu_seqlens: Tensor, *, max_seqlen: int, scale: float
) -> Tensor:
    """Prompts of any lengths, by flash attention.

    Args:
        queries: [T, N, D], rotated.
        keys: [T, K, D], rotated; rows may lie apart, as in the projection's output.
        values: [T, K, D], like keys.
        cu_seqlens: [S + 1], int32, where each prompt's rows begin.
        max_seqlen: tokens of a prompt at most.
        scale: of the scores.

    Returns:
        [T, N, D].
    """
    out = varlen_attn(
        queries, keys, values, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=(-1, 0),
        **_GROUPED,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def equal_prefill_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, num_sequences: int, scale: float
) -> Tensor:
    """Prompts of one length, by cuDNN; the arguments are those of `varlen_prefill_attention`.

    Returns:
        [T, N, D].
    """
    q, k, v = (x.view(num_sequences, -1, *x.shape[1:]).transpose(1, 2) for x in (queries, keys, values))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).reshape(queries.shape)
