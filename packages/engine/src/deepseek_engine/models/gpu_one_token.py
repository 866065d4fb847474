"""A layer on a GPU, and how one token goes through layers: by the fused launches of `kernels/triton/single_token.py`.

H hidden_size.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepseek_engine.kernels.triton import single_token
from deepseek_engine.kernels.triton.single_token import Choice, RouterWeights
from deepseek_engine.layers.latent_attention import LOW_RANK_NORM_EPS
from deepseek_engine.model_config import RouterConfig
from deepseek_engine.models.gpu_attention import GpuAttention, StepRows
from deepseek_engine.models.gpu_weights import (
    DenseWeights,
    ExpertWeights,
    GpuLayer,
    GroupedQueryWeights,
    LatentWeights,
    Matrix,
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer over its part of the cache.

    Attributes:
        router: of experts whose choice the fused launches make; None where they do not.
        choice: where it is put.
    """

    weights: GpuLayer
    attention: GpuAttention
    router: RouterWeights | None
    choice: Choice | None


class Choices:
    """Makes what the fused launches choose experts with; layers come one after another, and may share the place."""

    def __init__(self, eps: float, device: torch.device) -> None:
        self._eps, self._device = eps, device
        self._choices: dict[RouterConfig, Choice] = {}

    def of(self, weights: GpuLayer) -> tuple[RouterWeights | None, Choice | None]:
        """See `Layer`."""
        network = weights.feed_forward
        if isinstance(network, DenseWeights) or not single_token.can_choose(network.routing):
            return None, None
        router = RouterWeights(
            network.routing, weights.feed_forward_gain, self._eps, network.router, network.choice_bias
        )
        choice = self._choices.get(network.routing)
        if choice is None:
            choice = single_token.make_choice(network.routing, network.num_shared, self._device)
            self._choices[network.routing] = choice
        return router, choice

    def release(self) -> None:
        """Let go of their memory."""
        self._choices.clear()


def projection_in(weights: GpuLayer) -> Matrix:
    """The first product of a layer."""
    attention = weights.attention
    return attention.qkv if isinstance(attention, GroupedQueryWeights) else attention.input


def has_fused_launches(layer: Layer) -> bool:
    """Whether one token may go through the layer by `residual_of_one`."""
    attention, network = layer.weights.attention, layer.weights.feed_forward
    matrices = [projection_in(layer.weights), attention.output, network.gate_up, network.down]
    if isinstance(attention, LatentWeights) and attention.q_b is not None:
        matrices.append(attention.q_b)
    if isinstance(network, ExpertWeights) and layer.choice is None:
        return False
    return all(matrix.largest is None and single_token.can_compute(matrix.weight) for matrix in matrices)


def residual_of_one(x_H: Tensor, rows: StepRows, layers: Iterable[Layer], eps: float) -> Tensor:
    """The residual stream of one token behind the layers, [H], before the last norm; `x_H` is written over."""
    spare_H, middle_H = torch.empty_like(x_H), torch.empty_like(x_H)
    for layer in layers:
        weights = layer.weights
        projected = _project(x_H, weights, eps)
        attended = layer.attention.attend(projected[None], rows)[0]
        output = weights.attention.output
        single_token.linear_residual(
            attended, output.weight, output.scale, output.bias, x_H, middle_H, layer.router, layer.choice
        )
        network = weights.feed_forward
        places = 1 if layer.choice is None else layer.choice.ids.shape[0]
        width = network.down.weight.shape[-1]
        act = torch.empty(places, width, dtype=torch.float32, device=x_H.device)
        gate_up, down = network.gate_up, network.down
        single_token.gate_up(
            middle_H, weights.feed_forward_gain, eps, gate_up.weight, gate_up.scale, gate_up.bias, act,
            layer.choice, None if layer.choice is None else down.weight,
        )  # fmt: skip
        single_token.down(act, down.weight, down.scale, down.bias, middle_H, spare_H, layer.choice)
        x_H, spare_H = spare_H, x_H
    return x_H


def _project(x_H: Tensor, weights: GpuLayer, eps: float) -> Tensor:
    attention = weights.attention
    first = projection_in(weights)
    out = torch.empty(first.weight.shape[0], dtype=x_H.dtype, device=x_H.device)
    single_token.norm_linear(x_H, first.weight, first.scale, first.bias, weights.attention_gain, eps, out)
    if isinstance(attention, GroupedQueryWeights) or attention.q_b is None:
        return out
    rank = cast("int", attention.config.q_lora_rank)
    query = attention.q_b
    width = query.weight.shape[0]
    both = torch.empty(width + attention.config.latent_dim, dtype=x_H.dtype, device=x_H.device)
    single_token.norm_linear(
        out[:rank], query.weight, query.scale, None, attention.q_gain, LOW_RANK_NORM_EPS, both[:width]
    )
    both[width:] = out[rank:]
    return both
