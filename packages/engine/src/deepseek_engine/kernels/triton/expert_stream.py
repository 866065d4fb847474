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
from deepseek_engine.kernels.triton.product import add_product, fetch_to_l2, load_tile
from deepseek_engine.kernels.triton.quantize_groups import GROUP_SIZE, QuantizedRows, round_groups

MAX_UNSORTED_TOKENS = 64

LINES_AHEAD = 4
"""Of each row, 128 bytes each: what comes to L2 while the kernel before this one ends."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How the work is cut: rows of the weight a program, steps through them, and how many are loaded ahead."""

    block_n: int
    block_k: int
    num_stages: int
    num_warps: int = 4


def choose_stream_config(
    in_size: int, block_t: int, x_dtype: torch.dtype, weight_dtype: torch.dtype, *, is_gated: bool
) -> StreamConfig:
    """At least two programs on each multiprocessor, which together have more bytes in flight than memory's delay takes.

    With INT8 widened to bfloat16 three, as a program that widens does not load meanwhile.
    """
    largest = triton.next_power_of_2(in_size)
    if x_dtype is torch.int8:  # gated: a tile is one group of the quantised result
        return StreamConfig(128 if is_gated else 64, GROUP_SIZE, 3, 8 if is_gated and block_t > 32 else 4)
    if weight_dtype is torch.float32:
        return StreamConfig(64, min(32, largest), 3)
    if weight_dtype is torch.int8:
        return StreamConfig(64, min(128 if block_t <= 32 else 64, largest), 3 if block_t <= 32 else 4)
    return StreamConfig(64, min(64 if is_gated or block_t > 32 else 128, largest), 4)


def multiply_stream(
    x: Tensor | QuantizedRows,
    weight: Tensor,
    scale: Tensor | None,
    expert_ids_TK: Tensor,
    pairs: AlignedPairs | None,
    factors_TK: Tensor | None,
    out: Tensor | QuantizedRows,
    config: StreamConfig | None = None,
) -> None:
    """Each pair's row times its expert's matrix: see `experts.gate_up` (no factors) and `experts.down` (factors).

    Args:
        x: rows of the weight's type, bfloat16 beside an int8 weight, or int8 with scales.
        weight: bfloat16, float32 or int8.
        scale: of an int8 weight.
        expert_ids_TK: each token's experts.
        pairs: the sorted pairs; without them there may be up to `MAX_UNSORTED_TOKENS` tokens.
        factors_TK: the routing weights, of `down`.
        out: where to write. `QuantizedRows` takes a block of 128 channels.
        config: how the work is cut.
    """
    is_gated = factors_TK is None
    num_tokens, top_k = expert_ids_TK.shape
    x_values, x_scales = (x.values, x.scales) if isinstance(x, QuantizedRows) else (x, x)
    out_values, out_scales = (out.values, out.scales) if isinstance(out, QuantizedRows) else (out, out)
    num_pairs, out_size = out_values.shape
    in_size = x_values.shape[1]
    if pairs is None:
        assert num_tokens <= MAX_UNSORTED_TOKENS
        block_t, num_blocks = max(16, triton.next_power_of_2(num_tokens)), weight.shape[0]
    else:
        block_t, num_blocks = pairs.block_size, pairs.max_blocks
    config = config or choose_stream_config(in_size, block_t, x_values.dtype, weight.dtype, is_gated=is_gated)
    dependent = has_dependent_launch(weight.device)
    options = {"launch_pdl": True} if dependent else {}
    expert_stream_kernel[(num_blocks * triton.cdiv(out_size, config.block_n),)](
        x_values,
        x_scales,
        weight,
        weight if scale is None else scale,
        expert_ids_TK,
        expert_ids_TK if pairs is None else pairs.pairs,
        expert_ids_TK if pairs is None else pairs.block_experts,
        expert_ids_TK if pairs is None else pairs.num_blocks,
        expert_ids_TK if factors_TK is None else factors_TK,
        out_values,
        out_scales,
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
        IS_INT8=isinstance(x, QuantizedRows),
        QUANTIZES=isinstance(out, QuantizedRows),
        BLOCK_T=block_t,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        LINES_AHEAD=LINES_AHEAD,
        IS_DEPENDENT=dependent,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **options,
    )


@triton.jit(do_not_specialize=["num_pairs", "max_blocks"])
def expert_stream_kernel(  # noqa: C901 - a variant has few of these branches
    x_ptr,
    x_scales_ptr,
    weight_ptr,
    scale_ptr,
    ids_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_blocks_ptr,
    factors_ptr,
    out_ptr,
    out_scales_ptr,
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
    IS_INT8: tl.constexpr,
    QUANTIZES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES_AHEAD: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """One expert or block of its pairs, one tile of the output."""
    TILES: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    ROWS: tl.constexpr = 2 * OUT if IS_GATED else OUT
    if IS_SORTED:
        block = tl.program_id(0) % max_blocks
        tile = tl.program_id(0) // max_blocks
    else:
        expert = tl.program_id(0) // TILES
        tile = tl.program_id(0) % TILES
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the last one read the last one again: that costs nothing, and saves a mask on every load.
    weight_ptr += tl.minimum(n, OUT - 1)[:, None] * IN
    if IS_DEPENDENT and not IS_SORTED:
        # Whose weights these are is known before the tokens are: what the first steps read may come already.
        LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
        line = tl.minimum(tl.arange(0, LINES_AHEAD) * LINE, IN - 1)[None, :]
        fetch_to_l2(weight_ptr + expert.to(tl.int64) * (ROWS * IN) + line)
        if IS_GATED:
            fetch_to_l2(weight_ptr + expert.to(tl.int64) * (ROWS * IN) + OUT * IN + line)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    if IS_SORTED:
        if block >= tl.load(num_blocks_ptr):
            return
        expert = tl.load(block_experts_ptr + block)
        pair = tl.load(pairs_ptr + block * BLOCK_T + tl.arange(0, BLOCK_T))
        is_mine = pair < num_pairs
        pair = tl.where(is_mine, pair, 0)
    else:
        pair, is_mine = _pairs_of(expert, ids_ptr, num_pairs, TOP_K, CHOICES, BLOCK_T)
        if tl.max(is_mine.to(tl.int32), 0) == 0:
            return
    row = (pair // TOP_K if IS_GATED else pair).to(tl.int64)
    is_row = n < OUT
    IS_WHOLE: tl.constexpr = IN % BLOCK_K == 0
    NUM_GROUPS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K  # of the input's scales, in INT8
    weight_ptr += expert.to(tl.int64) * (ROWS * IN)
    x_ptr += row[None, :] * IN
    y = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for step in range(num_steps):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + k[:, None], mask=is_mine[None, :] & ((k < IN)[:, None] | IS_WHOLE), other=0)
        w = load_tile(weight_ptr + k[None, :], (k < IN)[None, :], IS_WHOLE)
        if IS_GATED:
            w_up = load_tile(weight_ptr + OUT * IN + k[None, :], (k < IN)[None, :], IS_WHOLE)
        if IS_INT8:
            x_scale = tl.load(x_scales_ptr + row * NUM_GROUPS + step)[None, :]
            y += tl.dot(w, x).to(tl.float32) * x_scale
            if IS_GATED:
                up += tl.dot(w_up, x).to(tl.float32) * x_scale
        else:
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
    pair = pair.to(tl.int64)
    if QUANTIZES:
        rounded, out_scale = round_groups(tl.trans(tl.where(is_row[:, None], y, 0.0)))
        out_offset = pair[:, None] * OUT + n[None, :]
        tl.store(out_ptr + out_offset, rounded.to(tl.int8), mask=is_mine[:, None] & is_row[None, :])
        tl.store(out_scales_ptr + pair * TILES + tile, out_scale, mask=is_mine)
    else:
        tl.store(out_ptr + pair[None, :] * OUT + n[:, None], y, mask=is_row[:, None] & is_mine[None, :])


@triton.jit
def _pairs_of(expert, ids_ptr, num_pairs, TOP_K: tl.constexpr, CHOICES: tl.constexpr, BLOCK_T: tl.constexpr):
    """Each token's pair with this expert, and whether there is one; 0 if there is not."""
    token = tl.arange(0, BLOCK_T)
    choice = tl.arange(0, CHOICES)
    pair = token[:, None] * TOP_K + choice[None, :]
    is_there = (choice < TOP_K)[None, :] & (pair < num_pairs)
    chosen = tl.load(ids_ptr + pair, mask=is_there, other=-1) == expert
    return tl.max(tl.where(chosen, pair, 0), 1), tl.max(chosen.to(tl.int32), 1) > 0
