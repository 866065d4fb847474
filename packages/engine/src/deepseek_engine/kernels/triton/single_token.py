"""One token through a layer in four launches around attention: what batch 1 needs is few launches and full bandwidth.

A layer is: norm and projection in; attention; projection out, residual and the router's products; the choice of experts
and their gate and up products; their down products, weighted, and the residual. Every launch reads its weights once in
loads of 16 bytes that are all under way at the same time, and begins to while the launch before it ends.

The router costs no launch of its own: each program of the output projection holds a few features of the new residual,
multiplies them with the router's columns, and adds its share to the logits, in fixed point, so that every order of
addition gives the same. The program that arrives last chooses. (Measured on an H100: choosing in every program of the
next launch instead takes 4 us a layer more for two of 16 experts, 14 us for six of 64.)

INT8 weights are multiplied as they are: a feature is written in two digits to base 128 and the products of four go into
one instruction. Converting weights to floats instead takes longer than reading them (measured on an H100).

H hidden_size, N rows of a weight, K features in, I width of an expert, E routed experts, J experts a token with the
shared ones, P programs of the output projection.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import IS_INTERPRETED, has_dependent_launch, let_next_begin, wait_for_inputs
from deepseek_engine.model_config import RouterConfig

MAX_TILE_WIDTH: Final = 2048
"""Features that a program reads of each row at a time."""

LOGIT_STEPS = tl.constexpr(2.0**30)
SQUARE_STEPS = tl.constexpr(2.0**20)
"""Of 1, in fixed point: logits up to 8e9 and sums of squares up to 8e12 fit, with 9 digits behind the point of the one
and 6 of the other."""

INTERPRETED = tl.constexpr(IS_INTERPRETED)


@triton.jit
def _tile(weight, rows, is_row, K, chunk, BLOCK_K: tl.constexpr, PACK: tl.constexpr):
    """Rows of a weight [N, K / PACK], and BLOCK_K features of them."""
    at = (chunk * BLOCK_K) // PACK + tl.arange(0, BLOCK_K // PACK)
    pointers = weight + rows[:, None].to(tl.int64) * (K // PACK) + at[None, :]
    return tl.load(pointers, mask=is_row[:, None] & (at < K // PACK)[None, :], other=0)


@triton.jit
def _packed(digits):
    """Whole numbers within -128..127, four to a word."""
    quads = tl.reshape(digits.to(tl.int32) & 255, (digits.shape[0] // 4, 4))
    return tl.sum(quads << (tl.arange(0, 4) * 8)[None, :], axis=1)


@triton.jit
def _operand(features, PACK: tl.constexpr):
    """Features as `_products` takes them: for an INT8 weight two digits each, and what the last one counts."""
    if PACK == 1:
        first, second, step = features, features, 1.0
    else:
        step = tl.maximum(tl.max(tl.abs(features)), 1e-30) * (1.0 / (127 * 128))
        whole = tl.floor(features * (1.0 / step) + 0.5)
        high = tl.floor(whole * (1.0 / 128) + 0.5)
        first, second = _packed(high), _packed(whole - high * 128)
    return first, second, step


@triton.jit
def _add_dot4(words, others, total):
    """`total` and the products of four INT8 numbers in each word with those in the other."""
    if INTERPRETED:
        for place in tl.static_range(4):
            total += ((words << (24 - 8 * place)) >> 24) * ((others << (24 - 8 * place)) >> 24)
    else:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [words, others, total], dtype=tl.int32, is_pure=True, pack=1
        )
    return total


@triton.jit
def _products(tile, first, second, PACK: tl.constexpr):
    """float32, to be summed along the features; for INT8 in steps of the second digit."""
    if PACK == 1:
        products = tile.to(tl.float32) * first[None, :]
    else:
        nothing = tl.zeros(tile.shape, dtype=tl.int32)
        by_first = _add_dot4(tile, tl.broadcast_to(first[None, :], tile.shape), nothing)
        products = _add_dot4(tile, tl.broadcast_to(second[None, :], tile.shape), by_first * 128).to(tl.float32)
    return products


@triton.jit
def _scales_and_biases(scale, bias, rows, is_row, PACK: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Of the rows of a weight; where there are none, what changes nothing."""
    scales, biases = 1.0, 0.0
    if PACK > 1:
        scales = tl.load(scale + rows, mask=is_row, other=0.0)
    if HAS_BIAS:
        biases = tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    return scales, biases


@triton.jit
def _norm_linear_kernel(
    x, gain, weight, scale, bias, out, N, K, eps,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    let_next_begin(IS_DEPENDENT)
    tile = _tile(weight, rows, is_row, K, 0, BLOCK_K, PACK)
    scales, biases = _scales_and_biases(scale, bias, rows, is_row, PACK, HAS_BIAS)
    if HAS_NORM:
        gains = tl.load(gain + cols, mask=cols < K, other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        features = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        if chunk > 0:
            tile = _tile(weight, rows, is_row, K, chunk, BLOCK_K, PACK)
            if HAS_NORM:
                gains = tl.load(gain + at, mask=at < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += features * features
            features *= gains
        first, second, step = _operand(features, PACK)
        products += _products(tile, first, second, PACK) * step
    y = tl.sum(products, axis=1)
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    y = y * scales + biases
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _linear_residual_kernel(
    attended, weight, scale, bias, x, x_out, gain, router, choice_bias, sums, arrivals, ids_out, weights_out,
    inverse_out, N, K, eps, factor,
    KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NUM_PLACES: tl.constexpr,
    NUM_GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, NORMALISES: tl.constexpr, HAS_BIAS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    let_next_begin(IS_DEPENDENT)
    tile = _tile(weight, rows, is_row, K, 0, BLOCK_K, PACK)
    scales, biases = _scales_and_biases(scale, bias, rows, is_row, PACK, HAS_BIAS)
    if NUM_EXPERTS > 0:
        experts = tl.arange(0, BLOCK_E)
        is_expert = experts < NUM_EXPERTS
        of_router = tl.load(
            router + experts[:, None] * N + rows[None, :], mask=is_expert[:, None] & is_row[None, :], other=0.0
        ).to(tl.float32)
        of_router *= tl.load(gain + rows, mask=is_row, other=0.0).to(tl.float32)[None, :]
    wait_for_inputs(IS_DEPENDENT)
    before = tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            tile = _tile(weight, rows, is_row, K, chunk, BLOCK_K, PACK)
        features = tl.load(attended + at, mask=at < K, other=0.0).to(tl.float32)
        first, second, step = _operand(features, PACK)
        products += _products(tile, first, second, PACK) * step
    y = tl.sum(products, axis=1) * scales + biases
    residual = (before + y).to(x_out.dtype.element_ty)
    tl.store(x_out + rows, residual, mask=is_row)
    if NUM_EXPERTS > 0:
        features = residual.to(tl.float32)
        logits = tl.sum(of_router * features[None, :], axis=1)
        tl.atomic_add(sums + experts, (logits * LOGIT_STEPS).to(tl.int64), mask=is_expert, sem="relaxed")
        square = tl.sum(features * features)
        tl.atomic_add(sums + BLOCK_E, (square * SQUARE_STEPS).to(tl.int64), sem="relaxed")
        tl.debug_barrier()  # all that the program adds is there before it arrives
        if tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
            scores, chosen_by, inverse = _scores(
                sums, choice_bias, N, eps, KIND, NUM_EXPERTS, NUM_GROUPS, KEPT_GROUPS, BLOCK_E
            )
            ids, weights = _choose(scores, chosen_by, factor, KIND, NUM_EXPERTS, TOP_K, NORMALISES, BLOCK_E, BLOCK_J)
            places = tl.arange(0, BLOCK_J)
            tl.store(ids_out + places, ids, mask=places < NUM_PLACES)
            tl.store(weights_out + places, weights, mask=places < NUM_PLACES)
            tl.store(inverse_out, inverse)
            # For the next layer.
            tl.store(sums + experts, tl.zeros((BLOCK_E,), dtype=tl.int64))
            tl.store(sums + BLOCK_E, tl.zeros((), dtype=tl.int64))
            tl.store(arrivals, 0)


@triton.jit
def _scores(
    sums, choice_bias, H, eps, KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """What experts are weighted by, what they are chosen by, and what the norm multiplies the residual by."""
    experts = tl.arange(0, BLOCK_E)
    is_expert = experts < NUM_EXPERTS
    # Others added to them: past the first-level cache, which may hold what lay there before.
    square = tl.load(sums + BLOCK_E, cache_modifier=".cg").to(tl.float32)
    sum_of_experts = tl.load(sums + experts, mask=is_expert, other=0, cache_modifier=".cg").to(tl.float32)
    inverse = tl.rsqrt(square * (1.0 / SQUARE_STEPS) / H + eps)
    logits = sum_of_experts * (1.0 / LOGIT_STEPS) * inverse
    if KIND == "sigmoid":
        scores = tl.where(is_expert, tl.sigmoid(logits), 0.0)
        chosen_by = scores + tl.load(choice_bias + experts, mask=is_expert, other=0.0)
    else:
        logits = tl.where(is_expert, logits, float("-inf"))
        powers = tl.exp(logits - tl.max(logits))
        scores = powers / tl.sum(powers)
        chosen_by = scores
    chosen_by = tl.where(is_expert, chosen_by, float("-inf"))
    if NUM_GROUPS > 1:
        chosen_by = _without_lesser_groups(chosen_by, KIND, NUM_GROUPS, KEPT_GROUPS, BLOCK_E)
    return scores, chosen_by, inverse


@triton.jit
def _choose(
    scores, chosen_by, factor, KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    NORMALISES: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The chosen experts and their weights, [BLOCK_J]; behind them the shared ones, with weight 1.

    A number and its expert are one key, so that each choice is one maximum: floats order as whole numbers once those of
    negative ones are turned round, and of equal ones the lower id has the greater rest.
    """
    experts, places = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_J)
    bits = chosen_by.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (BLOCK_E - 1 - experts).to(tl.int64)
    ids = NUM_EXPERTS + places - TOP_K
    weights = tl.zeros((BLOCK_J,), dtype=tl.float32)
    total = 1e-20
    for place in tl.static_range(TOP_K):
        key = tl.max(keys)
        expert = BLOCK_E - 1 - (key & 0xFFFFFFFF).to(tl.int32)
        keys = tl.where(experts == expert, -0x7FFFFFFFFFFFFFFF, keys)
        if KIND == "softmax":
            score = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        else:
            score = tl.sum(tl.where(experts == expert, scores, 0.0))
        total += score
        ids = tl.where(places == place, expert, ids)
        weights = tl.where(places == place, score, weights)
    if NORMALISES:
        factor = factor / total
    return ids, tl.where(places < TOP_K, weights * factor, 1.0)


@triton.jit
def _without_lesser_groups(
    chosen_by, KIND: tl.constexpr, NUM_GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, BLOCK_E: tl.constexpr
):
    """Leave the best groups' experts in the choice: by their best one, or the sum of their two best."""
    GROUP: tl.constexpr = BLOCK_E // NUM_GROUPS
    grouped = tl.reshape(chosen_by, (NUM_GROUPS, GROUP))
    of_groups = tl.max(grouped, axis=1)
    if KIND == "sigmoid":
        best = tl.argmax(grouped, axis=1)
        rest = tl.where(tl.arange(0, GROUP)[None, :] == best[:, None], float("-inf"), grouped)
        of_groups += tl.max(rest, axis=1)
    groups = tl.arange(0, NUM_GROUPS)
    is_kept = groups < 0
    for _ in tl.static_range(KEPT_GROUPS):
        best = tl.argmax(of_groups, axis=0)
        is_kept = is_kept | (groups == best)
        of_groups = tl.where(groups == best, float("-inf"), of_groups)
    # A group that is out still has experts of score 0 in the softmax kind: what is chosen is above 0 anyway.
    return tl.reshape(tl.where(is_kept[:, None], grouped, float("-inf")), (BLOCK_E,))


@triton.jit
def _fetch_ahead(address, num_bytes):
    """Have 128 lines of memory brought to the second-level cache, from the address on, and do not wait for them."""
    offsets = tl.arange(0, 128) * 128
    lines = address + tl.where(offsets < num_bytes, offsets, 0)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _gate_up_kernel(
    x, gain, inverse_in, ids, weight, scale, bias, ahead, act, H, WIDTH, eps, ahead_bytes,
    IS_ROUTED: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PACK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < WIDTH
    let_next_begin(IS_DEPENDENT)
    gains = tl.load(gain + cols, mask=cols < H, other=0.0).to(tl.float32)
    if IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
        expert = tl.load(ids + place)
        inverse = tl.load(inverse_in)
        weight += expert.to(tl.int64) * (2 * WIDTH * (H // PACK)).to(tl.int64)
    else:
        expert = 0
    gate_tile = _tile(weight, rows, is_row, H, 0, BLOCK_K, PACK)
    up_tile = _tile(weight, rows + WIDTH, is_row, H, 0, BLOCK_K, PACK)
    scale_at = scale + expert * (2 * WIDTH) if PACK > 1 else scale
    gate_scales, gate_biases = _scales_and_biases(scale_at, bias, rows, is_row, PACK, HAS_BIAS)
    up_scales, up_biases = _scales_and_biases(scale_at, bias, rows + WIDTH, is_row, PACK, HAS_BIAS)
    if not IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
    gates = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        features = tl.load(x + at, mask=at < H, other=0.0).to(tl.float32)
        if chunk > 0:
            gate_tile = _tile(weight, rows, is_row, H, chunk, BLOCK_K, PACK)
            up_tile = _tile(weight, rows + WIDTH, is_row, H, chunk, BLOCK_K, PACK)
            gains = tl.load(gain + at, mask=at < H, other=0.0).to(tl.float32)
        if not IS_ROUTED:
            squares += features * features
        features *= gains
        first, second, step = _operand(features, PACK)
        gates += _products(gate_tile, first, second, PACK) * step
        ups += _products(up_tile, first, second, PACK) * step
    if not IS_ROUTED:
        inverse = tl.rsqrt(tl.sum(squares) / H + eps)
    gate = tl.sum(gates, axis=1) * inverse * gate_scales + gate_biases
    up = tl.sum(ups, axis=1) * inverse * up_scales + up_biases
    tl.store(act + place * WIDTH + rows, gate * tl.sigmoid(gate) * up, mask=is_row)
    if IS_ROUTED and not INTERPRETED:
        # What the next launch reads of this expert: its loads wait for this launch, these do not.
        share = tl.program_id(0).to(tl.int64) * 16384
        if share < ahead_bytes:
            _fetch_ahead(ahead.to(tl.int64) + expert.to(tl.int64) * ahead_bytes + share, ahead_bytes - share)


@triton.jit
def _down_kernel(
    act, ids, weights, weight, scale, bias, x, x_out, H, WIDTH,
    IS_ROUTED: tl.constexpr, NUM_PLACES: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < H
    let_next_begin(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    if IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
        before = tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
        for place in tl.range(0, NUM_PLACES, loop_unroll_factor=2):
            expert = tl.load(ids + place).to(tl.int64)
            of_expert = weight + expert * (H * (WIDTH // PACK)).to(tl.int64)
            of_rows = tl.zeros((BLOCK_N,), dtype=tl.float32) + tl.load(weights + place)
            if PACK > 1:
                of_rows *= tl.load(scale + expert * H + rows, mask=is_row, other=0.0)
            for chunk in tl.static_range(NUM_CHUNKS):
                tile = _tile(of_expert, rows, is_row, WIDTH, chunk, BLOCK_K, PACK)
                at = chunk * BLOCK_K + cols
                features = tl.load(act + place * WIDTH + at, mask=at < WIDTH, other=0.0)
                first, second, step = _operand(features, PACK)
                products += _products(tile, first, second, PACK) * (of_rows * step)[:, None]
        y = tl.sum(products, axis=1)
    else:
        tile = _tile(weight, rows, is_row, WIDTH, 0, BLOCK_K, PACK)
        scales, biases = _scales_and_biases(scale, bias, rows, is_row, PACK, HAS_BIAS)
        wait_for_inputs(IS_DEPENDENT)
        before = tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
        for chunk in tl.static_range(NUM_CHUNKS):
            if chunk > 0:
                tile = _tile(weight, rows, is_row, WIDTH, chunk, BLOCK_K, PACK)
            at = chunk * BLOCK_K + cols
            features = tl.load(act + at, mask=at < WIDTH, other=0.0)
            first, second, step = _operand(features, PACK)
            products += _products(tile, first, second, PACK) * step
        y = tl.sum(products, axis=1) * scales + biases
    tl.store(x_out + rows, (before + y).to(x_out.dtype.element_ty), mask=is_row)


@dataclass(frozen=True, slots=True)
class Choice:
    """A token's experts, and what their choice is made from; the same tensors serve every layer.

    Attributes:
        sums: int64 [BLOCK_E + 1], logits before the norm's division, and the residual's sum of squares, in fixed point:
            programs add to them in any order and the sums are the same. 0 between layers.
        arrivals: int32 [1], programs that have added theirs; 0 between layers.
        ids: int32 [J], the chosen experts, then the shared ones.
        weights: float32 [J], what their outputs are multiplied by.
        inverse: float32 [1], what the norm multiplies the residual by.
    """

    sums: Tensor
    arrivals: Tensor
    ids: Tensor
    weights: Tensor
    inverse: Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program cuts its weight: rows and features at a time, how often, and by how many warps."""

    rows: int
    width: int
    num_chunks: int
    num_warps: int
    pack: int


def choose_tile(weight: Tensor, *, rows: int = 8) -> Tile:
    """By the size of a row and of a number.

    A thread holds its share of a tile in registers, so that all loads are under way at once: 32 kB for four warps are
    64 registers each.

    Args:
        weight: [..., features].
        rows: of a bfloat16 weight.
    """
    num_features, itemsize = weight.shape[-1], weight.element_size()
    width = min(triton.next_power_of_2(num_features), MAX_TILE_WIDTH)
    return Tile(
        rows=max(rows // 2, 1) if itemsize == 4 else rows,
        width=width,
        num_chunks=-(-num_features // width),
        num_warps=4,
        pack=4 if weight.dtype is torch.int8 else 1,
    )


def can_compute(weight: Tensor) -> bool:
    """Whether the kernels take a weight: INT8 is read in words of four features."""
    return weight.dtype is not torch.int8 or weight.shape[-1] % 4 == 0


def can_choose(config: RouterConfig) -> bool:
    """Whether `linear_residual` knows this way of choosing experts."""
    sizes = (config.num_experts, config.n_group)
    are_powers = all(size & (size - 1) == 0 for size in sizes)
    return config.kind in ("softmax", "sigmoid") and (config.n_group == 1 or are_powers)


def norm_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    eps: float,
    out: Tensor,
) -> None:
    """`out = norm(x) W^T + b` for one token, in one launch.

    Args:
        x: [K].
        weight: [N, K], float, or int8 with its scale.
        scale: float32 [N] of an int8 weight.
        bias: [N].
        gain: [K], of the RMS norm; None for no norm.
        eps: of the norm.
        out: [N].
    """
    num_rows, num_features = weight.shape
    tile = choose_tile(weight)
    _norm_linear_kernel[(triton.cdiv(num_rows, tile.rows),)](
        x, gain, _words(weight), scale, bias, out, num_rows, num_features, eps,
        HAS_NORM=gain is not None, HAS_BIAS=bias is not None, **_options(tile, x.device),
    )  # fmt: skip


def make_choice(config: RouterConfig, num_shared: int, device: torch.device) -> Choice:
    """Room for the choices of layers that are routed alike."""
    num_places = config.num_experts_per_tok + num_shared
    return Choice(
        sums=torch.zeros(triton.next_power_of_2(config.num_experts) + 1, dtype=torch.int64, device=device),
        arrivals=torch.zeros(1, dtype=torch.int32, device=device),
        ids=torch.zeros(num_places, dtype=torch.int32, device=device),
        weights=torch.zeros(num_places, device=device),
        inverse=torch.zeros(1, device=device),
    )


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """A layer's router behind its norm.

    Attributes:
        config: how experts are chosen; see `can_choose`.
        gain: [H], of the norm.
        eps: of the norm.
        weight: [E, H].
        choice_bias: float32 [E], of the sigmoid kind.
    """

    config: RouterConfig
    gain: Tensor
    eps: float
    weight: Tensor
    choice_bias: Tensor | None


def linear_residual(
    attended: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    x: Tensor,
    x_out: Tensor,
    router: RouterWeights | None = None,
    choice: Choice | None = None,
) -> None:
    """`x_out = x + attended W^T + b` for one token, and the choice of its experts, in one launch.

    Args:
        attended: [K].
        weight: [H, K], float, or int8 with its scale.
        scale: float32 [H] of an int8 weight.
        bias: [H].
        x: [H], the residual stream.
        x_out: [H]; not x.
        router: of the experts behind; None where the layer has none.
        choice: made for this weight's shape and router; written.
    """
    hidden_size, num_features = weight.shape
    tile = choose_tile(weight)
    grid = (triton.cdiv(hidden_size, tile.rows),)
    common = {"HAS_BIAS": bias is not None, **_options(tile, x.device)}
    if router is None or choice is None:
        _linear_residual_kernel[grid](
            attended, _words(weight), scale, bias, x, x_out, None, None, None, None, None, None, None, None,
            hidden_size, num_features, 0.0, 1.0,
            KIND="softmax", NUM_EXPERTS=0, TOP_K=0, NUM_PLACES=0, NUM_GROUPS=1, KEPT_GROUPS=1, NORMALISES=False,
            BLOCK_E=1, BLOCK_J=1, **common,
        )  # fmt: skip
        return
    config = router.config
    _linear_residual_kernel[grid](
        attended, _words(weight), scale, bias, x, x_out, router.gain, router.weight, router.choice_bias, choice.sums,
        choice.arrivals, choice.ids, choice.weights, choice.inverse, hidden_size, num_features, router.eps,
        config.routed_scaling_factor,
        KIND=config.kind, NUM_EXPERTS=config.num_experts, TOP_K=config.num_experts_per_tok,
        NUM_PLACES=choice.ids.shape[0], NUM_GROUPS=config.n_group, KEPT_GROUPS=config.topk_group,
        NORMALISES=config.norm_topk_prob, BLOCK_E=choice.sums.shape[0] - 1,
        BLOCK_J=triton.next_power_of_2(choice.ids.shape[0]), **common,
    )  # fmt: skip


def gate_up(
    x: Tensor,
    gain: Tensor,
    eps: float,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    act: Tensor,
    choice: Choice | None = None,
    ahead: Tensor | None = None,
) -> None:
    """`act = silu(gate) * up` of a token's experts, or of the one network there is, norm included, in one launch.

    Args:
        x: [H], the residual stream.
        gain: [H], of the norm.
        eps: of the norm.
        weight: [experts, 2 I, H], or [2 I, H] without a choice; float, or int8 with its scale.
        scale: float32 [experts, 2 I] or [2 I] of an int8 weight.
        bias: [2 I], without a choice only.
        act: float32 [J, I], or [1, I].
        choice: the token's experts, from `linear_residual`.
        ahead: [experts, ...], what the next launch reads of the chosen experts: it is brought nearer meanwhile.
    """
    num_places, width = act.shape
    tile = choose_tile(weight, rows=4)
    is_routed = choice is not None
    _gate_up_kernel[(triton.cdiv(width, tile.rows), num_places)](
        x, gain, choice.inverse if is_routed else None, choice.ids if is_routed else None, _words(weight), scale, bias,
        ahead if is_routed else None, act, weight.shape[-1], width, eps, 0 if ahead is None else ahead[0].nbytes,
        IS_ROUTED=is_routed, HAS_BIAS=bias is not None, **_options(tile, x.device),
    )  # fmt: skip


def down(
    act: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    x: Tensor,
    x_out: Tensor,
    choice: Choice | None = None,
) -> None:
    """`x_out = x +` the weighted sum of the experts' down products, or the only network's, in one launch.

    Args:
        act: float32 [J, I], or [1, I].
        weight: [experts, H, I], or [H, I] without a choice; float, or int8 with its scale.
        scale: float32 [experts, H] or [H] of an int8 weight.
        bias: [H], without a choice only.
        x: [H], the residual stream.
        x_out: [H]; not x.
        choice: the token's experts, from `linear_residual`.
    """
    hidden_size, width = weight.shape[-2:]
    tile = choose_tile(weight, rows=4)
    is_routed = choice is not None
    _down_kernel[(triton.cdiv(hidden_size, tile.rows),)](
        act, choice.ids if is_routed else None, choice.weights if is_routed else None, _words(weight), scale, bias,
        x, x_out, hidden_size, width,
        IS_ROUTED=is_routed, NUM_PLACES=act.shape[0], HAS_BIAS=bias is not None, **_options(tile, x.device),
    )  # fmt: skip


def _words(weight: Tensor) -> Tensor:
    """INT8 numbers four to a word."""
    return weight.view(torch.int32) if weight.dtype is torch.int8 else weight


def _options(tile: Tile, device: torch.device) -> dict[str, int]:
    is_dependent = has_dependent_launch(device)
    return {
        "NUM_CHUNKS": tile.num_chunks, "BLOCK_N": tile.rows, "BLOCK_K": tile.width, "PACK": tile.pack,
        "IS_DEPENDENT": is_dependent, "num_warps": tile.num_warps, "launch_pdl": is_dependent,
    }  # fmt: skip
