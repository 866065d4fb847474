"""Experts for tens to hundreds of tokens: every expert's weights stream through once, whoever chose it.

This waits for memory, so the tile's long side is the weight's: out^T = W x^T, with the weights as the left operand,
which may be widened from INT8 to bfloat16 in registers on its way into the product. Either a program takes an expert's
rows for up to 64 tokens and keeps those that chose it (no sorting; an expert nobody chose is not read), or a block of
sorted pairs (`align_pairs`); blocks of one expert run side by side and share its weights through L2.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.align_pairs import AlignedPairs
from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.product import add_product, load_tile

MAX_UNSORTED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How the work is cut: rows of the weight a program, steps through them, and how many are loaded ahead."""

    block_n: int
    block_k: int
    num_stages: int
    num_warps: int = 4


def choose_stream_config(in_size: int, block_t: int, weight_dtype: torch.dtype) -> StreamConfig:
    """Enough bytes in flight (16 KiB a multiprocessor hide memory's latency) with two or more programs on each."""
    largest = triton.next_power_of_2(in_size)
    if weight_dtype is torch.float32:
        return StreamConfig(64, min(32, largest), 3)
    return StreamConfig(64, min(128 if block_t <= 32 else 64, largest), 4)


def multiply_stream(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    expert_ids_TK: Tensor,
    pairs: AlignedPairs | None,
    factors_TK: Tensor | None,
    out: Tensor,
    config: StreamConfig | None = None,
) -> None:
    """Each pair's row times its expert's matrix: see `experts.gate_up` (no factors) and `experts.down` (factors).

    Without sorted pairs there may be up to `MAX_UNSORTED_TOKENS` tokens.
    """
    is_gated = factors_TK is None
    num_tokens, top_k = expert_ids_TK.shape
    num_pairs, out_size = out.shape
    in_size = x.shape[1]
    if pairs is None:
        assert num_tokens <= MAX_UNSORTED_TOKENS
        block_t, num_blocks = max(16, triton.next_power_of_2(num_tokens)), weight.shape[0]
    else:
        block_t, num_blocks = pairs.block_size, pairs.max_blocks
    config = choose_stream_config(in_size, block_t, weight.dtype) if config is None else config
    dependent = has_dependent_launch(x.device)
    options = {"launch_pdl": True} if dependent else {}
    expert_stream_kernel[(num_blocks * triton.cdiv(out_size, config.block_n),)](
        x,
        weight,
        weight if scale is None else scale,
        expert_ids_TK,
        expert_ids_TK if pairs is None else pairs.pairs,
        expert_ids_TK if pairs is None else pairs.block_experts,
        expert_ids_TK if pairs is None else pairs.num_blocks,
        expert_ids_TK if factors_TK is None else factors_TK,
        out,
        num_pairs,
        num_blocks,
        triton.cdiv(in_size, config.block_k),
        TOP_K=top_k,
        CHOICES=triton.next_power_of_2(top_k),
        IN=in_size,
        OUT=out_size,
        IS_SORTED=pairs is not None,
        IS_GATED=is_gated,
        HAS_SCALE=scale is not None,
        BLOCK_T=block_t,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        IS_DEPENDENT=dependent,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **options,
    )


@triton.jit
def expert_stream_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    ids_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_blocks_ptr,
    factors_ptr,
    out_ptr,
    num_pairs,
    max_blocks,
    num_steps,  # no constant: the loop would be unrolled
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IS_SORTED: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """One expert or block of its pairs, one tile of the output."""
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    if IS_SORTED:
        block = tl.program_id(0) % max_blocks
        tile = tl.program_id(0) // max_blocks
        if block >= tl.load(num_blocks_ptr):
            return
        expert = tl.load(block_experts_ptr + block)
        pair = tl.load(pairs_ptr + block * BLOCK_T + tl.arange(0, BLOCK_T))
        is_mine = pair < num_pairs
    else:
        TILES: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
        expert = tl.program_id(0) // TILES
        tile = tl.program_id(0) % TILES
        token = tl.arange(0, BLOCK_T)
        choice = tl.arange(0, CHOICES)
        pair_of_choice = token[:, None] * TOP_K + choice[None, :]
        is_there = (choice < TOP_K)[None, :] & (pair_of_choice < num_pairs)
        chosen = tl.load(ids_ptr + pair_of_choice, mask=is_there, other=-1) == expert
        is_mine = tl.max(chosen.to(tl.int32), 1) > 0
        if tl.max(is_mine.to(tl.int32), 0) == 0:
            return
        pair = tl.max(tl.where(chosen, pair_of_choice, 0), 1)
    row = (pair // TOP_K if IS_GATED else pair).to(tl.int64)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = n < OUT
    ROWS: tl.constexpr = 2 * OUT if IS_GATED else OUT
    IS_WHOLE: tl.constexpr = IN % BLOCK_K == 0
    # Rows beyond the last one read the last one again: that costs nothing, and saves a mask on every load.
    weight_ptr += expert.to(tl.int64) * (ROWS * IN) + tl.minimum(n, OUT - 1)[:, None] * IN
    x_ptr += row[None, :] * IN
    y = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(num_steps):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + k[:, None], mask=is_mine[None, :] & ((k < IN)[:, None] | IS_WHOLE), other=0.0)
        w = load_tile(weight_ptr + k[None, :], (k < IN)[None, :], IS_WHOLE)
        if IS_GATED:
            w_up = load_tile(weight_ptr + OUT * IN + k[None, :], (k < IN)[None, :], IS_WHOLE)
        y = add_product(w, x, y)
        if IS_GATED:
            up = add_product(w_up, x, up)
    if HAS_SCALE:
        scale_ptr += expert * ROWS
        y *= tl.load(scale_ptr + n, mask=is_row, other=0.0)[:, None]
        if IS_GATED:
            up *= tl.load(scale_ptr + OUT + n, mask=is_row, other=0.0)[:, None]
    if IS_GATED:
        y = y * tl.sigmoid(y) * up
    else:
        y *= tl.load(factors_ptr + pair, mask=is_mine, other=0.0)[None, :]
    tl.store(out_ptr + pair.to(tl.int64)[None, :] * OUT + n[:, None], y, mask=is_row[:, None] & is_mine[None, :])
