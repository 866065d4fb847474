"""A matrix a head, before and after absorbed attention, in float64.

T tokens, N heads, D qk_nope_head_dim, C kv_lora_rank, V v_head_dim.
"""

import torch
from torch import Tensor


def absorb_query(q_nope: Tensor, key_b: Tensor, out: Tensor) -> None:
    """[T, N, D] times [N, D, C] into [T, N, C]."""
    out.copy_(torch.einsum("tnd,ndc->tnc", q_nope.double(), key_b.double()))


def expand_values(attended: Tensor, value_b: Tensor) -> Tensor:
    """[T, N, C] times [N, V, C] to [T, N * V]."""
    return torch.einsum("tnc,nvc->tnv", attended.double(), value_b.double()).flatten(1).to(attended.dtype)
