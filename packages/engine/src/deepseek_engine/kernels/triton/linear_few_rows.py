"""`x W^T` for few rows of x, where time is the reading of W, in bfloat16, float32 or INT8 with a scale a channel.

Two kernels: one multiplies and sums in registers (2 to 4 rows; `single_token.norm_linear` is the one for one row), one
streams W through the tensor cores. There W is the left operand, so out^T = W x^T: INT8 weights become bfloat16 in
registers on their way in, and 64 rows of W fill a tile that 1 row of x would leave empty.

T rows of x (tokens), N rows of W, K features in, S splits of K.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.arrivals import NUM_COUNTERS, arrival_counters, is_last_arrival
from deepseek_engine.kernels.triton.launch import (
    has_dependent_launch,
    let_next_begin,
    num_multiprocessors,
    power_of_two,
    prefetch_to_l2,
    wait_for_inputs,
)
from deepseek_engine.kernels.triton.product import add_product, load_tile
from deepseek_engine.kernels.triton.single_token import norm_linear

MAX_MULTIPLIED_ROWS = 4

MULTIPLIED_BYTES = 16 * 1024
"""Of a program's tile of W, 128 bytes a thread: all its loads are under way at once, and several programs at a time."""

MAX_TILE_WIDTH = 2048

MAX_SPLITS = 4
"""Of K, where several programs share a multiprocessor: adding more up costs more than it spreads."""


@triton.jit
def _multiply(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, N,
    K: tl.constexpr, NUM_TOKENS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = row < N
    tiles = weight_ptr + row[:, None].to(tl.int64) * K + k[None, :]
    let_next_begin(IS_DEPENDENT)
    tile = tl.load(tiles, mask=is_row[:, None] & (k < K)[None, :], other=0.0)
    wait_for_inputs(IS_DEPENDENT)
    token = tl.arange(0, BLOCK_T)
    sums = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + k
        if chunk > 0:
            tile = tl.load(tiles + chunk * BLOCK_K, mask=is_row[:, None] & (at < K)[None, :], other=0.0)
        for index in tl.static_range(NUM_TOKENS):
            x = tl.load(x_ptr + index * K + at, mask=at < K, other=0.0).to(tl.float32)
            product = tl.sum(tile.to(tl.float32) * x[None, :], axis=1)
            sums = tl.where(token[None, :] == index, sums + product[:, None], sums)
    if HAS_SCALE:
        sums *= tl.load(scale_ptr + row, mask=is_row, other=0.0)[:, None]
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    mask = is_row[:, None] & (token < NUM_TOKENS)[None, :]
    tl.store(out_ptr + token[None, :] * N + row[:, None], sums.to(out_ptr.dtype.element_ty), mask=mask)


def multiply(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, out: Tensor) -> None:
    """`out = x W^T + b` by multiplications and sums in registers, for 1 to 4 rows."""
    num_tokens, size = x.shape
    num_rows = weight.shape[0]
    if num_tokens == 1:
        norm_linear(x[0], weight, scale, bias, None, 0.0, out[0])
        return
    block_k = min(power_of_two(size), MAX_TILE_WIDTH)
    block_n = max(MULTIPLIED_BYTES // (block_k * weight.element_size()), 1)
    is_dependent = has_dependent_launch(x.device)
    _multiply[(-(-num_rows // block_n),)](
        x, weight, scale, bias, out, num_rows, K=size, NUM_TOKENS=num_tokens, HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None, NUM_CHUNKS=-(-size // block_k), BLOCK_T=power_of_two(num_tokens), BLOCK_N=block_n,
        BLOCK_K=block_k, IS_DEPENDENT=is_dependent, num_warps=4, launch_pdl=is_dependent,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How W is cut: rows and features of a tile, tokens beside it, splits of K, and how a program is run."""

    block_n: int
    block_t: int
    block_k: int
    num_splits: int
    num_warps: int
    num_stages: int
    prefetched_lines: int = 8
    """Lines of 128 bytes of each row that are fetched to L2 while the kernel before this one ends; a power of two."""


@triton.jit(do_not_specialize=["num_tokens"])
def _stream(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, partials_ptr, counters_ptr, num_tokens, N,
    K: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_SPLITS: tl.constexpr,
    SPLIT_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    PREFETCHED_LINES: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    # Programs that share rows of W follow one another, so that the second finds them in L2.
    split = tl.program_id(1)
    block = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    row = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row, is_token = row < N, token < num_tokens
    # Rows past the end repeat the last one: a load without a mask is a plain copy of 16 bytes.
    weight_rows = weight_ptr + tl.minimum(row, N - 1)[:, None].to(tl.int64) * K
    x_rows = x_ptr + tl.minimum(token, num_tokens - 1)[None, :].to(tl.int64) * K
    channel = tl.arange(0, BLOCK_K)
    let_next_begin(IS_DEPENDENT)
    line = split * SPLIT_K + tl.arange(0, PREFETCHED_LINES) * (1024 // weight_ptr.dtype.element_ty.primitive_bitwidth)
    prefetch_to_l2(weight_rows + tl.minimum(line, K - 1)[None, :], IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for step in range(SPLIT_K // BLOCK_K):
        k = split * SPLIT_K + step * BLOCK_K + channel
        weight = load_tile(weight_rows + k[None, :], (k < K)[None, :], K % SPLIT_K == 0)
        x = load_tile(x_rows + k[:, None], (k < K)[:, None], K % SPLIT_K == 0)
        total = add_product(weight, x, total)
    is_last = True
    if NUM_SPLITS > 1:
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
        partials = partials_ptr + block.to(tl.int64) * (NUM_SPLITS * BLOCK_N * BLOCK_T) + place
        tl.store(partials + split * (BLOCK_N * BLOCK_T), total)
        is_last = is_last_arrival(counters_ptr + block, NUM_SPLITS)
    if is_last:
        if NUM_SPLITS > 1:  # always added in the order of K, whoever came last
            total = tl.load(partials, cache_modifier=".cg")
            for index in tl.static_range(1, NUM_SPLITS):
                total += tl.load(partials + index * (BLOCK_N * BLOCK_T), cache_modifier=".cg")
        if HAS_SCALE:
            total *= tl.load(scale_ptr + row, mask=is_row, other=0.0)[:, None]
        if HAS_BIAS:
            total += tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
        out = out_ptr + token[None, :].to(tl.int64) * N + row[:, None]
        tl.store(out, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_token[None, :])


def stream(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    config: StreamConfig | None = None,
) -> None:
    """`out = x W^T + b` with W streamed through the tensor cores once for every `block_t` rows of x."""
    num_tokens, size = x.shape
    num_rows = weight.shape[0]
    if config is None:
        config = choose_config(num_tokens, num_rows, size, weight.dtype, num_multiprocessors(x.device))
    blocks_n, blocks_t = -(-num_rows // config.block_n), -(-num_tokens // config.block_t)
    split_k = -(-size // (config.block_k * config.num_splits)) * config.block_k
    num_splits = -(-size // split_k)
    partials = None
    if num_splits > 1:
        assert blocks_n * blocks_t <= NUM_COUNTERS
        shape = (blocks_n * blocks_t, num_splits, config.block_n, config.block_t)
        partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    is_dependent = has_dependent_launch(x.device)
    _stream[(blocks_t, num_splits, blocks_n)](
        x, weight, scale, bias, out, partials, arrival_counters(x.device), num_tokens, num_rows, K=size,
        HAS_SCALE=scale is not None, HAS_BIAS=bias is not None, NUM_SPLITS=num_splits, SPLIT_K=split_k,
        BLOCK_N=config.block_n, BLOCK_T=config.block_t, BLOCK_K=config.block_k,
        PREFETCHED_LINES=config.prefetched_lines, IS_DEPENDENT=is_dependent,
        num_warps=config.num_warps, num_stages=config.num_stages, launch_pdl=is_dependent,
    )  # fmt: skip


def choose_config(num_tokens: int, num_rows: int, size: int, dtype: torch.dtype, num_programs: int) -> StreamConfig:
    """One program a multiprocessor or more where W is small, splitting K if its rows are too few for that.

    About 64 KB of W have to be on their way to each multiprocessor to keep its share of the memory busy; a tile row of
    128 bytes or more is read whole. The tiles of INT8 were the fastest of those tried on an H100, for 8 to 64 rows.
    """
    block_t = min(max(power_of_two(num_tokens), 16), 64 if num_tokens <= 64 else 128)
    is_small = num_rows <= 64 * num_programs
    programs_at_once = 1
    if dtype is torch.float32:  # multiplied outside the tensor cores
        block_n, block_k, num_warps, num_stages = 64, 32, 4, 4
    elif block_t == 128:
        block_n, block_k, num_warps, num_stages = 128, 64, 8, 4
    elif dtype is torch.int8 and is_small and block_t <= 32:  # all of W is on its way at once
        block_n, block_k, num_warps, num_stages = 32, 128, 4, 8
        programs_at_once = 4 if block_t == 16 else 2
    elif dtype is torch.int8:
        block_n, block_k, num_warps, num_stages = 64, 128, 4, 6 if is_small else 4 if block_t == 32 else 3
    else:
        block_n, block_k, num_warps, num_stages = 64, 128, 4, 4 if block_t == 64 else 5
    num_blocks = -(-num_rows // block_n) * -(-num_tokens // block_t)
    num_splits = min(programs_at_once * num_programs // num_blocks, size // (2 * block_k))
    if programs_at_once > 1:
        num_splits = min(num_splits, MAX_SPLITS)
    return StreamConfig(block_n, block_t, block_k, max(num_splits, 1), num_warps, num_stages)
