"""Residual addition and normalisation, step by step in float64. T tokens, H hidden_size, R rows a token."""

import torch
from torch import Tensor


def add_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    norm_bias: Tensor | None = None,
    row_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The new residual, of x's type, and the normed rows, float64 [T, H]; arguments as of the kernel.

    `quantize_groups` of the normed rows is what the kernel writes in INT8.
    """
    total = x.double()
    if rows is not None:
        total = total + rows.double().view(x.shape[0], -1, x.shape[1]).sum(dim=1)
    if bias is not None:
        total = total + bias.double()
    residual = total.to(x.dtype)
    if row_ids is not None:
        residual = residual[row_ids.long()]
    values = residual.double()
    if norm_bias is not None:
        values = values - values.mean(dim=-1, keepdim=True)
    values = values / torch.sqrt(values.square().mean(dim=-1, keepdim=True) + eps) * weight.double()
    return residual, values if norm_bias is None else values + norm_bias.double()
