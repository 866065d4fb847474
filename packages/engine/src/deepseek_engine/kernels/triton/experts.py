"""The experts' products: gate and up with SwiGLU, and down with the routing weights, for any number of tokens.

T tokens, H hidden size, K experts a token, E experts, I intermediate size; pair `t * K + k` is token t's choice k. A
token's experts are distinct. Weights may be float32 (IEEE products, no TF32), bfloat16, or int8 with a float32 scale
for each output channel; int8 weights take bfloat16 activations, or int8 ones with a scale for each group of channels.
A caller asks `route` once a layer, then calls `gate_up` and `down` with its result; the sum over K is the caller's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepseek_engine.kernels.triton.align_pairs import AlignedPairs, align_pairs
from deepseek_engine.kernels.triton.expert_stream import MAX_UNSORTED_TOKENS, multiply_stream
from deepseek_engine.kernels.triton.expert_tiles import multiply_tiles
from deepseek_engine.kernels.triton.expert_vectors import multiply_vectors
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows

Method = Literal["vectors", "stream", "tiles"]
"""How products are computed: see expert_vectors.py, expert_stream.py and expert_tiles.py."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to compute, and in which blocks of sorted pairs; `block_size` 0 does not sort."""

    method: Method
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class Routing:
    """Who computes what, and how.

    Attributes:
        expert_ids_TK: int32.
        pairs: sorted by expert, unless the plan does without.
        plan: how to compute.
    """

    expert_ids_TK: Tensor
    pairs: AlignedPairs | None
    plan: Plan


def choose_plan(num_tokens: int, top_k: int, num_experts: int, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> Plan:
    """Choose by shapes and types alone, so that a CUDA graph may hold what follows.

    Blocks are about as large as the mean expert's rows: larger ones compute what nobody needs, smaller ones read
    weights again.
    """
    num_pairs = num_tokens * top_k
    rows_per_expert = num_pairs / min(num_experts, num_pairs)
    if x_dtype is torch.int8 and num_tokens > MAX_UNSORTED_TOKENS:
        return Plan("stream" if rows_per_expert <= 96 else "tiles", 64 if rows_per_expert <= 192 else 128)
    if x_dtype is torch.int8:
        return Plan("stream")
    if num_pairs <= 16:
        return Plan("vectors")
    if x_dtype is torch.float32:  # without matrix units arithmetic counts: no rows that nobody asked for
        return Plan("stream", 16 if rows_per_expert <= 16 else 32 if rows_per_expert <= 64 else 64)
    if num_tokens <= MAX_UNSORTED_TOKENS:
        return Plan("stream")
    if weight_dtype is torch.int8 or rows_per_expert <= 96:
        return Plan("stream", 32 if rows_per_expert <= 16 else 64 if rows_per_expert <= 96 else 128)
    return Plan("tiles", 64 if rows_per_expert <= 192 else 128)


def route(
    expert_ids_TK: Tensor,
    num_experts: int,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    plan: Plan | None = None,
) -> Routing:
    """Prepare the products of one layer; launches something only if pairs have to be sorted.

    Args:
        expert_ids_TK: int32 [T, K], contiguous, each in 0..E-1, T at least 1.
        num_experts: E.
        x_dtype: of the activations; int8 for `gate_up_int8` and `down_int8`.
        weight_dtype: of the experts' weights.
        plan: instead of `choose_plan`'s.
    """
    if plan is None:
        num_tokens, top_k = expert_ids_TK.shape
        plan = choose_plan(num_tokens, top_k, num_experts, x_dtype, weight_dtype)
    pairs = align_pairs(expert_ids_TK, num_experts, plan.block_size) if plan.block_size else None
    return Routing(expert_ids_TK, pairs, plan)


def gate_up(x_TH: Tensor, weight: Tensor, scale: Tensor | None, routing: Routing, out: Tensor | None = None) -> Tensor:
    """`silu(gate) * up` of each pair.

    Args:
        x_TH: bfloat16 or float32, contiguous.
        weight: [E, 2 I, H], gate rows first: of x's type, or int8.
        scale: float32 [E, 2 I] of an int8 weight.
        routing: from `route`.
        out: [T * K, I], where to write.

    Returns:
        [T * K, I] of x's type, in the order of pairs.
    """
    _check(x_TH, weight, scale)
    if out is None:
        out = x_TH.new_empty(routing.expert_ids_TK.numel(), weight.shape[1] // 2)
    _multiply(x_TH, weight, scale, routing, None, out)
    return out


def down(
    act: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    weights_TK: Tensor,
    routing: Routing,
    out: Tensor | None = None,
) -> Tensor:
    """Each pair's row back to the hidden size, times its routing weight.

    Args:
        act: [T * K, I], what `gate_up` returned.
        weight: [E, H, I]: of act's type, or int8.
        scale: float32 [E, H] of an int8 weight.
        weights_TK: float32, the routing weights.
        routing: from `route`.
        out: [T * K, H], where to write.

    Returns:
        [T * K, H] of act's type, in the order of pairs.
    """
    _check(act, weight, scale)
    out = act.new_empty(act.shape[0], weight.shape[1]) if out is None else out
    _multiply(act, weight, scale, routing, weights_TK, out)
    return out


def gate_up_int8(
    x: QuantizedRows, weight: Tensor, scale: Tensor, routing: Routing, out: QuantizedRows | None = None
) -> QuantizedRows:
    """`gate_up` in INT8 x INT8, its result quantised for `down_int8`.

    Args:
        x: T rows of H channels, from `quantize_groups`.
        weight: int8 [E, 2 I, H], gate rows first.
        scale: float32 [E, 2 I].
        routing: from `route`, for int8 activations.
        out: where to write.

    Returns:
        T * K rows of I channels, in the order of pairs.
    """
    num_pairs, size = routing.expert_ids_TK.numel(), weight.shape[1] // 2
    out = QuantizedRows.empty(num_pairs, size, weight.device) if out is None else out
    _multiply(x, weight, scale, routing, None, out)
    return out


def down_int8(
    act: QuantizedRows,
    weight: Tensor,
    scale: Tensor,
    weights_TK: Tensor,
    routing: Routing,
    out: Tensor | None = None,
) -> Tensor:
    """`down` in INT8 x INT8.

    Args:
        act: T * K rows of I channels, what `gate_up_int8` returned.
        weight: int8 [E, H, I].
        scale: float32 [E, H].
        weights_TK: float32, the routing weights.
        routing: from `route`, for int8 activations.
        out: [T * K, H], where to write, of any float type; bfloat16 if there is none.

    Returns:
        [T * K, H], in the order of pairs.
    """
    if out is None:
        out = torch.empty(act.values.shape[0], weight.shape[1], dtype=torch.bfloat16, device=weight.device)
    _multiply(act, weight, scale, routing, weights_TK, out)
    return out


def _multiply(
    x: Tensor | QuantizedRows,
    weight: Tensor,
    scale: Tensor | None,
    routing: Routing,
    weights_TK: Tensor | None,
    out: Tensor | QuantizedRows,
) -> None:
    expert_ids_TK, pairs = routing.expert_ids_TK, routing.pairs
    if routing.plan.method == "stream":
        multiply_stream(x, weight, scale, expert_ids_TK, pairs, weights_TK, out)
    elif routing.plan.method == "tiles":
        assert pairs is not None
        multiply_tiles(x, weight, scale, expert_ids_TK.shape[1], pairs, weights_TK, out)
    else:
        assert isinstance(x, Tensor)
        assert isinstance(out, Tensor)
        multiply_vectors(x, weight, scale, expert_ids_TK, weights_TK, out)


def _check(x: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"activations are {x.dtype}: take bfloat16 or float32, or quantize_groups and gate_up_int8")
    if weight.dtype is not (x.dtype if scale is None else torch.int8):
        raise ValueError(f"{weight.dtype} weights with{'out' if scale is None else ''} a scale and {x.dtype} rows")
