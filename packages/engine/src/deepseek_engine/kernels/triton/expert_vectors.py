"""Experts for one to a few tokens: each pair of a token and an expert is a matrix times a vector, read at full speed.

With so few pairs hardly two share an expert. Programs of the same rows of all pairs run side by side, so that what two
pairs share comes from L2 the second time. Products are plain multiplications in float32: arithmetic is not what this
waits for.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs


@dataclass(frozen=True, slots=True)
class VectorsConfig:
    """How the work is cut: rows of the weight a program, and how much of a row one step reads."""

    block_n: int
    block_k: int
    num_warps: int = 4


def choose_vectors_config(in_size: int, weight_dtype: torch.dtype) -> VectorsConfig:
    """About 16 loads of 16 bytes in flight for each thread."""
    block_k = min(triton.next_power_of_2(in_size), 1024 if weight_dtype is torch.float32 else 2048)
    return VectorsConfig(8 if weight_dtype is torch.int8 else 4, block_k)


def multiply_vectors(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    expert_ids_TK: Tensor,
    factors_TK: Tensor | None,
    out: Tensor,
    config: VectorsConfig | None = None,
) -> None:
    """Each pair's row times its expert's matrix: see `experts.gate_up` (no factors) and `experts.down` (factors)."""
    is_gated = factors_TK is None
    num_pairs, out_size = out.shape
    in_size = x.shape[1]
    config = choose_vectors_config(in_size, weight.dtype) if config is None else config
    dependent = has_dependent_launch(x.device)
    options = {"launch_pdl": True} if dependent else {}
    expert_vectors_kernel[(num_pairs * triton.cdiv(out_size, config.block_n),)](
        x,
        weight,
        weight if scale is None else scale,
        expert_ids_TK,
        expert_ids_TK if factors_TK is None else factors_TK,
        out,
        num_pairs,
        TOP_K=expert_ids_TK.shape[1],
        IN=in_size,
        OUT=out_size,
        IS_GATED=is_gated,
        HAS_SCALE=scale is not None,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        IS_DEPENDENT=dependent,
        num_warps=config.num_warps,
        **options,
    )


@triton.jit(do_not_specialize=["num_pairs"])
def expert_vectors_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    ids_ptr,
    factors_ptr,
    out_ptr,
    num_pairs,
    TOP_K: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """A few rows of one pair's output."""
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    pair = tl.program_id(0) % num_pairs
    n = tl.program_id(0) // num_pairs * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < OUT
    expert = tl.load(ids_ptr + pair)
    ROWS: tl.constexpr = 2 * OUT if IS_GATED else OUT
    weight_ptr += expert.to(tl.int64) * (ROWS * IN)
    x_ptr += (pair // TOP_K if IS_GATED else pair) * IN
    y = tl.zeros([BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.static_range(0, IN, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        offset = n[:, None] * IN + k[None, :]
        is_there = is_row[:, None] & (k < IN)[None, :]
        w = tl.load(weight_ptr + offset, mask=is_there, other=0)
        if IS_GATED:
            w_up = tl.load(weight_ptr + OUT * IN + offset, mask=is_there, other=0)
        x = tl.load(x_ptr + k, mask=k < IN, other=0.0).to(tl.float32)
        y += tl.sum(w.to(tl.float32) * x[None, :], 1)
        if IS_GATED:
            up += tl.sum(w_up.to(tl.float32) * x[None, :], 1)
    if HAS_SCALE:
        scale_ptr += expert * ROWS
        y *= tl.load(scale_ptr + n, mask=is_row, other=0.0)
        if IS_GATED:
            up *= tl.load(scale_ptr + OUT + n, mask=is_row, other=0.0)
    if IS_GATED:
        y = y * tl.sigmoid(y) * up
    else:
        y *= tl.load(factors_ptr + pair)
    tl.store(out_ptr + pair * OUT + n, y, mask=is_row)
