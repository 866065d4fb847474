"""Routing in one launch: logits of the normed rows, and the choice of experts; for few tokens the norm before it too.

T tokens, H hidden_size, E experts, K experts a token, S shared experts that every token takes with weight 1.
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
from deepseek_engine.kernels.triton.expert_choice import choice_constants, choose_experts, expert_of_column
from deepseek_engine.kernels.triton.int8_groups import store_groups
from deepseek_engine.kernels.triton.launch import (
    has_dependent_launch,
    let_next_begin,
    num_multiprocessors,
    power_of_two,
    wait_for_inputs,
)
from deepseek_engine.kernels.triton.norm import Normed, add_rows, check_rows, normalise
from deepseek_engine.kernels.triton.product import add_product
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows
from deepseek_engine.model_config import RouterConfig

MAX_FUSED_TOKENS = 64
"""More than this and every program that normalises a row again, to have it, costs more than a launch."""


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Sizes of a program's tile, and how it is run."""

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["num_tokens"])
def _route(
    x_ptr, weight_ptr, choice_bias_ptr, ids_ptr, weights_ptr, num_tokens,
    SIZE: tl.constexpr, NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr, TOP_GROUPS: tl.constexpr, TOP_K: tl.constexpr, NUM_SHARED: tl.constexpr,
    OUT_BLOCK: tl.constexpr, IS_SIGMOID: tl.constexpr, IS_NORMALISED: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = GROUP_BLOCK * EXPERT_BLOCK
    column = tl.arange(0, COLUMNS)
    expert = expert_of_column(column, NUM_EXPERTS, NUM_GROUPS, EXPERT_BLOCK)
    is_expert = expert >= 0
    choice_bias = tl.zeros((COLUMNS,), tl.float32)
    if IS_SIGMOID:
        choice_bias = tl.load(choice_bias_ptr + expert, mask=is_expert, other=0.0)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_token = token < num_tokens
    channel = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + token.to(tl.int64)[:, None] * SIZE
    weight_rows = weight_ptr + expert[None, :] * SIZE
    logits = tl.zeros((BLOCK_M, COLUMNS), tl.float32)
    for start in range(0, SIZE, BLOCK_K):
        k = start + channel
        x = tl.load(x_rows + k[None, :], mask=is_token[:, None] & (k < SIZE)[None, :], other=0.0)
        weight = tl.load(weight_rows + k[:, None], mask=is_expert[None, :] & (k < SIZE)[:, None], other=0.0)
        if x.dtype == tl.bfloat16 and weight.dtype == tl.float32:
            # Three bfloat16 hold a float32, and their products are exact in the tensor cores' sums: as good as float32
            # arithmetic, whose products of 64 columns take twenty times as long.
            for _ in tl.static_range(3):
                part = weight.to(tl.bfloat16)
                logits = add_product(x, part, logits)
                weight -= part.to(tl.float32)
        else:
            logits = add_product(x, weight, logits)
    ids, weights = choose_experts(
        logits, choice_bias, NUM_EXPERTS, NUM_GROUPS, GROUP_BLOCK, EXPERT_BLOCK, TOP_GROUPS, TOP_K,
        OUT_BLOCK, IS_SIGMOID, IS_NORMALISED, SCALE, BLOCK_M,
    )  # fmt: skip
    _store_choice(ids, weights, ids_ptr, weights_ptr, token[:, None], is_token[:, None], TOP_K + NUM_SHARED, OUT_BLOCK)


@triton.jit
def _store_choice(
    ids, weights, ids_ptr, weights_ptr, token, is_token, NUM_OUTPUTS: tl.constexpr, OUT_BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.arange(0, OUT_BLOCK)[None, :]
    mask = is_token & (place < NUM_OUTPUTS)
    tl.store(ids_ptr + token * NUM_OUTPUTS + place, ids, mask=mask)
    tl.store(weights_ptr + token * NUM_OUTPUTS + place, weights, mask=mask)


def route(
    x: Tensor, weight: Tensor, rule: RouterConfig, *, choice_bias: Tensor | None = None, num_shared: int = 0
) -> tuple[Tensor, Tensor]:
    """Each token's experts and their weights.

    Args:
        x: normed rows, [T, H].
        weight: [E, H], bfloat16 or, for `in_float32`, float32: the product's type, accumulated in float32 either way.
        rule: how experts are chosen; `layers/routers.py` says what each kind computes.
        choice_bias: float32 [E] of a sigmoid rule.
        num_shared: ids E to E + S - 1 with weight 1 follow every token's choice.

    Returns:
        ids, int32, and weights, float32, both [T, K + S].

    Raises:
        NotImplementedError: the rule is a sparsemixer.
        ValueError: more experts than the kernel holds: 8 a token, 512 columns of groups padded to powers of two.
    """
    constants = choice_constants(rule, num_shared)
    num_tokens, size = x.shape
    ids, weights = _empty_choice(num_tokens, constants.num_outputs, x.device)
    if num_tokens == 0:
        return ids, weights
    config = choose_config(num_tokens, constants.num_columns, x.dtype)
    is_dependent = has_dependent_launch(x.device)
    _route[(triton.cdiv(num_tokens, config.block_m),)](
        x, weight, choice_bias, ids, weights, num_tokens, SIZE=size, **constants.arguments(),
        BLOCK_M=config.block_m, BLOCK_K=config.block_k, IS_DEPENDENT=is_dependent,
        num_warps=config.num_warps, num_stages=config.num_stages, launch_pdl=is_dependent,
    )  # fmt: skip
    return ids, weights


def choose_config(num_tokens: int, num_columns: int, dtype: torch.dtype) -> TileConfig:
    """A program holds the logits of its tokens for all columns, and the choice needs several copies of them."""
    if dtype is torch.float32:  # no tensor cores: small tiles, many programs
        return TileConfig(16 if num_columns > 64 else 32, 32, 4, 3)
    block_m = 16 if num_tokens <= 512 else 64
    if num_columns > 128:
        return TileConfig(min(block_m, 32), 64, 8, 4)
    return TileConfig(block_m, 128, 4, 4)


@triton.jit
def _add_rms_norm_route(
    x_ptr, rows_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, weight_ptr, choice_bias_ptr,
    residual_ptr, values_ptr, int8_ptr, scales_ptr, ids_ptr, weights_ptr, logits_ptr, counters_ptr, eps,
    SIZE: tl.constexpr, INT8_GROUPS: tl.constexpr, ROWS_PER_TOKEN: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_LAYER_NORM: tl.constexpr, WRITES_RESIDUAL: tl.constexpr, WRITES_INT8: tl.constexpr,
    NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_BLOCK: tl.constexpr, EXPERT_BLOCK: tl.constexpr,
    TOP_GROUPS: tl.constexpr, TOP_K: tl.constexpr, NUM_SHARED: tl.constexpr, OUT_BLOCK: tl.constexpr,
    IS_SIGMOID: tl.constexpr, IS_NORMALISED: tl.constexpr, SCALE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, NUM_TILES: tl.constexpr, NUM_SPLITS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    split = tl.program_id(1)
    COLUMNS: tl.constexpr = GROUP_BLOCK * EXPERT_BLOCK
    channel = tl.arange(0, BLOCK)
    mask = channel < SIZE
    # Nobody writes weights: the first tile of the router is on its way before the rows are there.
    first_expert = split * (NUM_TILES * BLOCK_E) + tl.arange(0, BLOCK_E)
    first_mask = (first_expert < NUM_EXPERTS)[:, None] & mask[None, :]
    tile = tl.load(weight_ptr + first_expert[:, None] * SIZE + channel[None, :], mask=first_mask, other=0.0)
    norm_weight = tl.load(norm_weight_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    norm_bias = tl.zeros((BLOCK,), tl.float32)
    if IS_LAYER_NORM:
        norm_bias = tl.load(norm_bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    bias = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    x = add_rows(x_ptr, rows_ptr, bias, row, channel, mask, SIZE, ROWS_PER_TOKEN)
    normed = normalise(x, norm_weight, norm_bias, eps, mask, SIZE, IS_LAYER_NORM)
    rounded = normed.to(values_ptr.dtype.element_ty)
    operand = rounded.to(weight_ptr.dtype.element_ty).to(tl.float32)
    logits_row = logits_ptr + row * NUM_EXPERTS
    for index in tl.static_range(NUM_TILES):
        expert = first_expert + index * BLOCK_E
        if index > 0:
            tile_mask = (expert < NUM_EXPERTS)[:, None] & mask[None, :]
            tile = tl.load(weight_ptr + expert[:, None] * SIZE + channel[None, :], mask=tile_mask, other=0.0)
        products = tile.to(tl.float32) * operand[None, :]
        tl.store(logits_row + expert, tl.sum(products, axis=1), mask=expert < NUM_EXPERTS)
    # x may be overwritten only when all programs of the row have read it: by the last to arrive.
    is_last = True
    if NUM_SPLITS > 1:
        is_last = is_last_arrival(counters_ptr + row, NUM_SPLITS)
    else:
        tl.debug_barrier()  # the threads of this program read one another's logits
    if is_last:
        if WRITES_RESIDUAL:
            tl.store(residual_ptr + row * SIZE + channel, x.to(residual_ptr.dtype.element_ty), mask=mask)
        tl.store(values_ptr + row * SIZE + channel, rounded, mask=mask)
        if WRITES_INT8:
            store_groups(normed, 0, int8_ptr + row * SIZE, scales_ptr + row * INT8_GROUPS, SIZE, BLOCK)
        column_expert = expert_of_column(tl.arange(0, COLUMNS), NUM_EXPERTS, NUM_GROUPS, EXPERT_BLOCK)
        choice_bias = tl.zeros((COLUMNS,), tl.float32)
        if IS_SIGMOID:
            choice_bias = tl.load(choice_bias_ptr + column_expert, mask=column_expert >= 0, other=0.0)
        logits = tl.load(logits_row + column_expert, mask=column_expert >= 0, other=0.0, cache_modifier=".cg")
        ids, weights = choose_experts(
            logits[None, :], choice_bias, NUM_EXPERTS, NUM_GROUPS, GROUP_BLOCK, EXPERT_BLOCK, TOP_GROUPS, TOP_K,
            OUT_BLOCK, IS_SIGMOID, IS_NORMALISED, SCALE, 1,
        )  # fmt: skip
        _store_choice(ids, weights, ids_ptr, weights_ptr, row, True, TOP_K + NUM_SHARED, OUT_BLOCK)


def add_rms_norm_route(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    rule: RouterConfig,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    norm_bias: Tensor | None = None,
    residual: Tensor | None = None,
    wants_int8: bool = False,
    choice_bias: Tensor | None = None,
    num_shared: int = 0,
) -> tuple[Normed, Tensor, Tensor]:
    """`add_rms_norm` and `route` of its rows in one launch, for up to 64 tokens: rows stay in registers.

    A row's experts are split over programs that each normalise the row; the last to arrive writes and chooses.
    Arguments, results and refusals as of the two; `residual` may be x.

    Raises:
        NotImplementedError: the rule is a sparsemixer.
        ValueError: over 64 tokens, or as of the two.
    """
    num_tokens, size = x.shape
    if num_tokens > MAX_FUSED_TOKENS:
        raise ValueError(f"{num_tokens} tokens exceed {MAX_FUSED_TOKENS}: call add_rms_norm and route")
    constants = choice_constants(rule, num_shared)
    rows_per_token = check_rows(x, rows)
    is_changed = rows is not None or bias is not None
    if residual is None:
        residual = torch.empty_like(x) if is_changed else x
    values = torch.empty(num_tokens, size, dtype=norm_weight.dtype, device=x.device)
    quantized = QuantizedRows.empty(num_tokens, size, x.device) if wants_int8 else None
    int8, scales = (quantized.values, quantized.scales) if quantized else (None, None)
    normed = Normed(residual, values, int8, scales)
    ids, weights = _empty_choice(num_tokens, constants.num_outputs, x.device)
    if num_tokens == 0:
        return normed, ids, weights
    logits = torch.empty(num_tokens, rule.num_experts, dtype=torch.float32, device=x.device)
    block = max(power_of_two(size), 128)
    num_warps = min(max(block // 256, 1), 8)
    block_e, num_splits = choose_split(num_tokens, weight, num_multiprocessors(x.device), num_warps, block)
    is_dependent = has_dependent_launch(x.device)
    _add_rms_norm_route[(num_tokens, num_splits)](
        x, rows, bias, norm_weight, norm_bias, weight, choice_bias, residual, values, int8, scales, ids, weights,
        logits, arrival_counters(x.device), eps, SIZE=size, INT8_GROUPS=-(-size // 128),
        ROWS_PER_TOKEN=rows_per_token, HAS_BIAS=bias is not None, IS_LAYER_NORM=norm_bias is not None,
        WRITES_RESIDUAL=is_changed or residual is not x, WRITES_INT8=wants_int8, **constants.arguments(), BLOCK=block,
        BLOCK_E=block_e, NUM_TILES=triton.cdiv(triton.cdiv(rule.num_experts, block_e), num_splits),
        NUM_SPLITS=num_splits, IS_DEPENDENT=is_dependent, num_warps=num_warps, launch_pdl=is_dependent,
    )  # fmt: skip
    return normed, ids, weights


def choose_split(num_tokens: int, weight: Tensor, num_programs: int, num_warps: int, block: int) -> tuple[int, int]:
    """Experts a tile, and programs a row.

    A tile takes 64 registers of each thread. A multiprocessor reads about 80 GB/s from L2, so further programs a row
    pay from about 64 KB of router weights on; more programs than multiprocessors do not.
    """
    num_experts, size = weight.shape
    block_e = max(64 * 4 * 32 * num_warps // (block * weight.element_size()), 1)
    block_e = min(block_e, power_of_two(num_experts))
    num_bytes = num_experts * size * weight.element_size()
    if num_bytes <= 64 * 1024:
        return block_e, 1
    num_splits = max(min(-(-num_experts // block_e), num_programs // num_tokens), 1)
    return block_e, power_of_two(num_splits + 1) // 2  # the next lower power: few kernels to compile


def _empty_choice(num_tokens: int, num_outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.empty(num_tokens, num_outputs, dtype=torch.int32, device=device)
    return ids, torch.empty(num_tokens, num_outputs, dtype=torch.float32, device=device)


assert MAX_FUSED_TOKENS <= NUM_COUNTERS
