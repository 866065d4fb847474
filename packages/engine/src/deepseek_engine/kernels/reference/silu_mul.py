"""The gate of a feed-forward network in float64."""

from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, float64 [T, I], of [T, 2 I] with the gates first."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate * gate.sigmoid() * up
