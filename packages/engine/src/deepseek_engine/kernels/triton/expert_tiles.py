"""Experts for prompts: a product of one expert's rows after another's, at the speed of the matrix units.

Blocks of sorted pairs (`align_pairs`) are the left operand, tiles of the weights the right one. Programs that run
together share rows and weights through L2: `GROUP` blocks times all tiles, one such group after another.
In INT8 x INT8 a step is one group of 128 channels: its sum is exact in int32, then scaled and added in float32.
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
from deepseek_engine.kernels.triton.quantize_groups import GROUP_SIZE, QuantizedRows, round_groups


@dataclass(frozen=True, slots=True)
class TilesConfig:
    """How the work is cut: channels of the output a program, steps through the input, and how many are loaded ahead."""

    block_n: int
    block_k: int
    num_stages: int
    num_warps: int
    group: int = 8


def choose_tiles_config(block_m: int, x_dtype: torch.dtype, *, is_gated: bool) -> TilesConfig:
    """The largest tile whose sums fit into registers; gated ones hold two."""
    if x_dtype is torch.int8:  # int32 sums of one step beside the float32 ones
        return TilesConfig(128, GROUP_SIZE, 3, (16 if is_gated else 8) if block_m > 64 else (8 if is_gated else 4))
    if x_dtype is torch.float32:
        return TilesConfig(64, 32, 3, 8 if is_gated else 4)
    return TilesConfig(128 if is_gated else 256, 64, 3, 8 if block_m > 64 else 4)


def multiply_tiles(
    x: Tensor | QuantizedRows,
    weight: Tensor,
    scale: Tensor | None,
    top_k: int,
    pairs: AlignedPairs,
    factors_TK: Tensor | None,
    out: Tensor | QuantizedRows,
    config: TilesConfig | None = None,
) -> None:
    """Each pair's row times its expert's matrix: see `experts.gate_up` (no factors) and `experts.down` (factors).

    Args:
        x: rows of the weight's type; in INT8 with scales.
        weight: bfloat16, float32 or int8.
        scale: of an int8 weight.
        top_k: choices of each token.
        pairs: the sorted pairs.
        factors_TK: the routing weights, of `down`.
        out: where to write. `QuantizedRows` takes a block of 128 channels.
        config: how the work is cut.
    """
    is_gated = factors_TK is None
    x_values, x_scales = (x.values, x.scales) if isinstance(x, QuantizedRows) else (x, x)
    out_values, out_scales = (out.values, out.scales) if isinstance(out, QuantizedRows) else (out, out)
    num_pairs, out_size = out_values.shape
    if config is None:
        config = choose_tiles_config(pairs.block_size, x_values.dtype, is_gated=is_gated)
    dependent = has_dependent_launch(weight.device)
    options = {"launch_pdl": True} if dependent else {}
    expert_tiles_kernel[(pairs.max_blocks * triton.cdiv(out_size, config.block_n),)](
        x_values,
        x_scales,
        weight,
        weight if scale is None else scale,
        pairs.pairs,
        pairs.block_experts,
        pairs.num_blocks,
        pairs.pairs if factors_TK is None else factors_TK,
        out_values,
        out_scales,
        num_pairs,
        triton.cdiv(x_values.shape[1], config.block_k),
        TOP_K=top_k,
        IN=x_values.shape[1],
        OUT=out_size,
        IS_GATED=is_gated,
        IS_INT8=isinstance(x, QuantizedRows),
        QUANTIZES=isinstance(out, QuantizedRows),
        BLOCK_M=pairs.block_size,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=config.group,
        IS_DEPENDENT=dependent,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **options,
    )


@triton.jit(do_not_specialize=["num_pairs"])
def expert_tiles_kernel(
    x_ptr,
    x_scales_ptr,
    weight_ptr,
    scale_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_blocks_ptr,
    factors_ptr,
    out_ptr,
    out_scales_ptr,
    num_pairs,
    num_steps,  # no constant: the loop would be unrolled
    TOP_K: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_INT8: tl.constexpr,
    QUANTIZES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """One block of pairs, one tile of the output."""
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    TILES: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    num_blocks = tl.load(num_blocks_ptr)
    program = tl.program_id(0)
    if program >= num_blocks * TILES:
        return
    first_block = program // (GROUP * TILES) * GROUP
    group_size = tl.minimum(num_blocks - first_block, GROUP)
    block = first_block + program % (GROUP * TILES) % group_size
    tile = program % (GROUP * TILES) // group_size
    expert = tl.load(block_experts_ptr + block)
    pair = tl.load(pairs_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
    is_mine = pair < num_pairs
    # What fills the last block reads row 0, and channels beyond the last one read the last one again: that costs
    # nothing, and saves a mask on every load.
    pair = tl.where(is_mine, pair, 0).to(tl.int64)
    row = pair // TOP_K if IS_GATED else pair
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_channel = n < OUT
    ROWS: tl.constexpr = 2 * OUT if IS_GATED else OUT
    NUM_GROUPS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K  # of the input's scales, in INT8
    x_ptr += row[:, None] * IN
    x_scales_ptr += row * NUM_GROUPS
    weight_ptr += expert.to(tl.int64) * (ROWS * IN) + tl.minimum(n, OUT - 1)[None, :] * IN
    y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(num_steps):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x = load_tile(x_ptr + k[None, :], (k < IN)[None, :], IN % BLOCK_K == 0)
        w = load_tile(weight_ptr + k[:, None], (k < IN)[:, None], IN % BLOCK_K == 0)
        if IS_GATED:
            w_up = load_tile(weight_ptr + OUT * IN + k[:, None], (k < IN)[:, None], IN % BLOCK_K == 0)
        if IS_INT8:
            x_scale = tl.load(x_scales_ptr + step)[:, None]
            y += tl.dot(x, w).to(tl.float32) * x_scale
            if IS_GATED:
                up += tl.dot(x, w_up).to(tl.float32) * x_scale
        else:
            y = add_product(x, w, y)
            if IS_GATED:
                up = add_product(x, w_up, up)
    if IS_INT8:
        scale_ptr += expert * ROWS
        y *= tl.load(scale_ptr + n, mask=is_channel, other=0.0)[None, :]
        if IS_GATED:
            up *= tl.load(scale_ptr + OUT + n, mask=is_channel, other=0.0)[None, :]
    if IS_GATED:
        y = y * tl.sigmoid(y) * up
    else:
        y *= tl.load(factors_ptr + pair)[:, None]
    out_offset = pair[:, None] * OUT + n[None, :]
    is_there = is_mine[:, None] & is_channel[None, :]
    if QUANTIZES:
        rounded, out_scale = round_groups(tl.where(is_channel[None, :], y, 0.0))
        tl.store(out_ptr + out_offset, rounded.to(tl.int8), mask=is_there)
        tl.store(out_scales_ptr + pair * TILES + tile, out_scale, mask=is_mine)
    else:
        tl.store(out_ptr + out_offset, y, mask=is_there)
