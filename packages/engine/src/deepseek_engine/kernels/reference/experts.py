"""The experts' products, straight from the definition. See kernels/triton/experts.py."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_engine.kernels.reference.quantize_groups import dequantize_groups, quantize_groups


def gate_up(x_TH: Tensor, weight: Tensor, scale: Tensor | None, expert_ids_TK: Tensor) -> Tensor:
    """`silu(gate) * up` of each pair of a token and one of its experts, in float64: [T * K, I]."""
    rows = x_TH.repeat_interleave(expert_ids_TK.shape[1], dim=0)
    gate, up = _expert_linear(rows, weight, scale, expert_ids_TK).chunk(2, dim=1)
    return F.silu(gate) * up


def down(act: Tensor, weight: Tensor, scale: Tensor | None, weights_TK: Tensor, expert_ids_TK: Tensor) -> Tensor:
    """Each pair's row [I] to [H], times its routing weight, in float64: [T * K, H]."""
    return _expert_linear(act, weight, scale, expert_ids_TK) * weights_TK.double().flatten()[:, None]


def gate_up_int8(
    x: tuple[Tensor, Tensor], weight: Tensor, scale: Tensor, expert_ids_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """`gate_up` of quantised rows, quantised again: values and scales as `quantize_groups` returns them."""
    return quantize_groups(gate_up(dequantize_groups(*x), weight, scale, expert_ids_TK))


def down_int8(
    act: tuple[Tensor, Tensor], weight: Tensor, scale: Tensor, weights_TK: Tensor, expert_ids_TK: Tensor
) -> Tensor:
    """`down` of quantised rows."""
    return down(dequantize_groups(*act), weight, scale, weights_TK, expert_ids_TK)


def _expert_linear(rows: Tensor, weight: Tensor, scale: Tensor | None, expert_ids_TK: Tensor) -> Tensor:
    """Each row times its expert's matrix [out, in], one expert at a time."""
    out = torch.empty(rows.shape[0], weight.shape[1], dtype=torch.float64, device=rows.device)
    experts = expert_ids_TK.flatten()
    for expert in cast("list[int]", experts.unique().tolist()):
        matrix = weight[expert].double()
        if scale is not None:
            matrix *= scale[expert].double()[:, None]
        out[experts == expert] = rows[experts == expert].double() @ matrix.T
    return out
