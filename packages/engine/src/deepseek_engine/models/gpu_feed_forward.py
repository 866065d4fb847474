"""The feed-forward network of a layer on a GPU, for rows of several tokens: dense, or a mixture of experts.

T tokens, H hidden_size.
"""

from typing import Final

import torch
from torch import Tensor

from deepseek_engine.kernels.triton import experts
from deepseek_engine.kernels.triton.norm import Normed, add_rms_norm
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows
from deepseek_engine.kernels.triton.router import MAX_FUSED_TOKENS, add_rms_norm_route, route
from deepseek_engine.kernels.triton.silu_mul import silu_mul
from deepseek_engine.models.gpu_linear import Rows, multiply, wants_int8
from deepseek_engine.models.gpu_weights import DenseWeights, ExpertWeights, GpuLayer

MAX_FLOAT_PAIRS: Final = 8
"""Of tokens and their experts. With more, INT8 experts read INT8 rows: then weights need not be made floats."""


def feed_forward(x_TH: Tensor, added: Tensor, weights: GpuLayer, eps: float) -> tuple[Tensor, Tensor]:
    """Norm, and the network.

    Args:
        x_TH: the residual stream.
        added: rows that are still to be added to it.
        weights: of the layer.
        eps: of its norms.

    Returns:
        the new residual stream, and the rows that are still to be added to it.
    """
    if isinstance(weights.feed_forward, DenseWeights):
        return _through_network(x_TH, added, weights, weights.feed_forward, eps)
    return _through_experts(x_TH, added, weights, weights.feed_forward, eps)


def normed_rows(normed: Normed) -> Rows:
    """Normed rows for a product."""
    if normed.int8 is None or normed.scales is None:
        return Rows(normed.values)
    return Rows(normed.values, QuantizedRows(normed.int8, normed.scales))


def _through_network(
    x_TH: Tensor, added: Tensor, weights: GpuLayer, network: DenseWeights, eps: float
) -> tuple[Tensor, Tensor]:
    num_tokens = x_TH.shape[0]
    reads_int8 = wants_int8(network.gate_up, num_tokens)
    normed = add_rms_norm(
        x_TH, weights.feed_forward_gain, eps, rows=added, wants_values=not reads_int8, wants_int8=reads_int8
    )
    both = multiply(normed_rows(normed), network.gate_up)
    reads_int8 = wants_int8(network.down, num_tokens)
    values, int8, scales = silu_mul(both, wants_values=not reads_int8, wants_int8=reads_int8)
    act = Rows(values, None if int8 is None or scales is None else QuantizedRows(int8, scales))
    return normed.residual, multiply(act, network.down)


def _through_experts(
    x_TH: Tensor, added: Tensor, weights: GpuLayer, network: ExpertWeights, eps: float
) -> tuple[Tensor, Tensor]:
    gain, rule = weights.feed_forward_gain, network.routing
    gate_up, down = network.gate_up, network.down
    num_tokens, num_experts = x_TH.shape[0], gate_up.weight.shape[0]
    num_pairs = num_tokens * (rule.num_experts_per_tok + network.num_shared)
    reads_int8 = gate_up.scale is not None and num_pairs > MAX_FLOAT_PAIRS
    if num_tokens <= MAX_FUSED_TOKENS:
        normed, ids, shares = add_rms_norm_route(
            x_TH, gain, eps, network.router, rule, rows=added, choice_bias=network.choice_bias,
            num_shared=network.num_shared, wants_int8=reads_int8,
        )  # fmt: skip
    else:
        normed = add_rms_norm(x_TH, gain, eps, rows=added, wants_int8=reads_int8)
        assert normed.values is not None
        ids, shares = route(
            normed.values, network.router, rule, choice_bias=network.choice_bias, num_shared=network.num_shared
        )  # fmt: skip
    int8 = normed_rows(normed).int8
    if reads_int8 and int8 is not None and gate_up.scale is not None and down.scale is not None:
        routing = experts.route(ids, num_experts, torch.int8, torch.int8)
        act = experts.gate_up_int8(int8, gate_up.weight, gate_up.scale, routing)
        return normed.residual, experts.down_int8(act, down.weight, down.scale, shares, routing)
    values = normed.values
    assert values is not None
    routing = experts.route(ids, num_experts, values.dtype, gate_up.weight.dtype)
    act_values = experts.gate_up(values, gate_up.weight, gate_up.scale, routing)
    return normed.residual, experts.down(act_values, down.weight, down.scale, shares, routing)
