"""One token through a layer in four launches around attention: what batch 1 needs is few launches and full bandwidth.

A layer is: norm and projection in; attention; projection out, residual and the router's products; the choice of experts
and their gate and up products; their down products, weighted, and the residual. Every launch reads its weights once in
loads of 16 bytes that are all under way at the same time, and begins to while the launch before it ends.

The router costs no launch of its own: each program of the output projection holds a few features of the new residual,
multiplies them with the router's columns, and writes its share of the logits; the program that arrives last adds them
up, in one order, so that every run agrees, and chooses.

INT8 weights are multiplied as they are: a feature is written in two digits to base 128 and the products of four go into
one instruction. Converting weights to floats instead takes longer than reading them (measured on an H100).

H hidden_size, N rows of a weight, K features in, I width of an expert, E routed experts, J experts a token with the
shared ones, P programs of the output projection.
"""

# pyright: basic, reportAttributeAccessIssue=false
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

MAX_SHARED: Final = 8
"""Shared experts of a layer at most."""

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
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            tile = _tile(weight, rows, is_row, K, chunk, BLOCK_K, PACK)
        features = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += features * features
            features *= tl.load(gain + at, mask=at < K, other=0.0).to(tl.float32)
        first, second, step = _operand(features, PACK)
        products += _products(tile, first, second, PACK) * step
    y = tl.sum(products, axis=1)
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    if PACK > 1:
        y *= tl.load(scale + rows, mask=is_row, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _linear_residual_kernel(
    attended, weight, scale, bias, x, x_out, gain, router, choice_bias, shares, squares, arrivals, ids_out,
    weights_out, inverse_out, N, K, num_shared, eps, factor,
    KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NUM_GROUPS: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, NORMALISES: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    rows = program * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    let_next_begin(IS_DEPENDENT)
    tile = _tile(weight, rows, is_row, K, 0, BLOCK_K, PACK)
    if NUM_EXPERTS > 0:
        experts = tl.arange(0, BLOCK_E)
        is_expert = experts < NUM_EXPERTS
        of_router = tl.load(
            router + experts[:, None] * N + rows[None, :], mask=is_expert[:, None] & is_row[None, :], other=0.0
        ).to(tl.float32)
        gains = tl.load(gain + rows, mask=is_row, other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            tile = _tile(weight, rows, is_row, K, chunk, BLOCK_K, PACK)
        features = tl.load(attended + at, mask=at < K, other=0.0).to(tl.float32)
        first, second, step = _operand(features, PACK)
        products += _products(tile, first, second, PACK) * step
    y = tl.sum(products, axis=1)
    if PACK > 1:
        y *= tl.load(scale + rows, mask=is_row, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    residual = (tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32) + y).to(x_out.dtype.element_ty)
    tl.store(x_out + rows, residual, mask=is_row)
    if NUM_EXPERTS > 0:
        features = residual.to(tl.float32)
        share = tl.sum(of_router * (features * gains)[None, :], axis=1)
        tl.store(shares + program * BLOCK_E + experts, share)
        tl.store(squares + program, tl.sum(features * features))
        tl.debug_barrier()  # the whole program's share is written before it arrives
        num_programs = tl.num_programs(0)
        if tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == num_programs - 1:
            tl.store(arrivals, 0)  # for the next launch
            _choose(
                shares, squares, choice_bias, ids_out, weights_out, inverse_out, N, num_programs, num_shared, eps,
                factor, KIND, NUM_EXPERTS, TOP_K, NUM_GROUPS, KEPT_GROUPS, NORMALISES, BLOCK_E, BLOCK_P, BLOCK_S,
            )  # fmt: skip


@triton.jit
def _choose(
    shares, squares, choice_bias, ids_out, weights_out, inverse_out, H, num_programs, num_shared, eps, factor,
    KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NUM_GROUPS: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, NORMALISES: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Add the programs' shares up, in their order, and write the chosen experts, their weights and the norm's factor.

    The shared experts come behind the chosen ones, with weight 1.
    """
    experts = tl.arange(0, BLOCK_E)
    programs = tl.arange(0, BLOCK_P)
    logits = tl.zeros((BLOCK_E,), dtype=tl.float32)
    total = 0.0
    for start in range(0, num_programs, BLOCK_P):
        at = start + programs
        # Others wrote them: past the first-level cache, which may hold what lay there before.
        part = tl.load(
            shares + at[:, None] * BLOCK_E + experts[None, :],
            mask=(at < num_programs)[:, None], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        logits += tl.sum(part, axis=0)
        total += tl.sum(tl.load(squares + at, mask=at < num_programs, other=0.0, cache_modifier=".cg"))
    inverse = tl.rsqrt(total / H + eps)
    tl.store(inverse_out, inverse)
    is_expert = experts < NUM_EXPERTS
    logits = tl.where(is_expert, logits * inverse, float("-inf"))
    if KIND == "sigmoid":
        scores = tl.where(is_expert, tl.sigmoid(logits), 0.0)
        chosen_by = tl.where(is_expert, scores + tl.load(choice_bias + experts, mask=is_expert, other=0.0), float("-inf"))
    else:
        powers = tl.exp(logits - tl.max(logits))
        scores = powers / tl.sum(powers)
        chosen_by = tl.where(is_expert, scores, float("-inf"))
    if NUM_GROUPS > 1:
        chosen_by = _without_lesser_groups(chosen_by, KIND, NUM_GROUPS, KEPT_GROUPS, BLOCK_E)
    total = 1e-20
    for choice in tl.static_range(TOP_K):
        best = tl.argmax(chosen_by, axis=0)
        score = tl.sum(tl.where(experts == best, scores, 0.0))
        chosen_by = tl.where(experts == best, float("-inf"), chosen_by)
        total += score
        tl.store(ids_out + choice, best)
        tl.store(weights_out + choice, score)
    tl.store(weights_out + TOP_K, factor / total if NORMALISES else factor)
    places = tl.arange(0, BLOCK_S)
    tl.store(ids_out + TOP_K + places, NUM_EXPERTS + places, mask=places < num_shared)


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
def _gate_up_kernel(
    x, gain, inverse_in, ids, weight, scale, bias, act, H, I, eps,
    IS_ROUTED: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < I
    let_next_begin(IS_DEPENDENT)
    if IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
        expert = tl.load(ids + place)
        weight += expert.to(tl.int64) * (2 * I * (H // PACK)).to(tl.int64)
        inverse = tl.load(inverse_in)
    else:
        expert = 0
    gate_tile = _tile(weight, rows, is_row, H, 0, BLOCK_K, PACK)
    up_tile = _tile(weight, rows + I, is_row, H, 0, BLOCK_K, PACK)
    if not IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
    gates = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            gate_tile = _tile(weight, rows, is_row, H, chunk, BLOCK_K, PACK)
            up_tile = _tile(weight, rows + I, is_row, H, chunk, BLOCK_K, PACK)
        features = tl.load(x + at, mask=at < H, other=0.0).to(tl.float32)
        if not IS_ROUTED:
            squares += features * features
        features *= tl.load(gain + at, mask=at < H, other=0.0).to(tl.float32)
        first, second, step = _operand(features, PACK)
        gates += _products(gate_tile, first, second, PACK) * step
        ups += _products(up_tile, first, second, PACK) * step
    if not IS_ROUTED:
        inverse = tl.rsqrt(tl.sum(squares) / H + eps)
    gate = tl.sum(gates, axis=1) * inverse
    up = tl.sum(ups, axis=1) * inverse
    if PACK > 1:
        scale_at = scale + expert * (2 * I) + rows
        gate *= tl.load(scale_at, mask=is_row, other=0.0)
        up *= tl.load(scale_at + I, mask=is_row, other=0.0)
    if HAS_BIAS:
        gate += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
        up += tl.load(bias + I + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(act + place * I + rows, gate * tl.sigmoid(gate) * up, mask=is_row)


@triton.jit
def _down_kernel(
    act, ids, weights, weight, scale, bias, x, x_out, H, I,
    TOP_K: tl.constexpr, NUM_PLACES: tl.constexpr, IS_ROUTED: tl.constexpr, HAS_BIAS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < H
    let_next_begin(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    if IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
        factor = tl.load(weights + TOP_K)
        for place in tl.range(0, NUM_PLACES, loop_unroll_factor=2):
            expert = tl.load(ids + place).to(tl.int64)
            share = tl.load(weights + place, mask=place < TOP_K, other=0.0) * factor
            of_rows = tl.zeros((BLOCK_N,), dtype=tl.float32) + tl.where(place < TOP_K, share, 1.0)
            if PACK > 1:
                of_rows *= tl.load(scale + expert * H + rows, mask=is_row, other=0.0)
            of_expert = weight + expert * (H * (I // PACK)).to(tl.int64)
            for chunk in tl.static_range(NUM_CHUNKS):
                tile = _tile(of_expert, rows, is_row, I, chunk, BLOCK_K, PACK)
                at = chunk * BLOCK_K + cols
                features = tl.load(act + place * I + at, mask=at < I, other=0.0)
                first, second, step = _operand(features, PACK)
                products += _products(tile, first, second, PACK) * (of_rows * step)[:, None]
        y = tl.sum(products, axis=1)
    else:
        tile = _tile(weight, rows, is_row, I, 0, BLOCK_K, PACK)
        wait_for_inputs(IS_DEPENDENT)
        for chunk in tl.static_range(NUM_CHUNKS):
            if chunk > 0:
                tile = _tile(weight, rows, is_row, I, chunk, BLOCK_K, PACK)
            at = chunk * BLOCK_K + cols
            features = tl.load(act + at, mask=at < I, other=0.0)
            first, second, step = _operand(features, PACK)
            products += _products(tile, first, second, PACK) * step
        y = tl.sum(products, axis=1)
        if PACK > 1:
            y *= tl.load(scale + rows, mask=is_row, other=0.0)
        if HAS_BIAS:
            y += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    y += tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(x_out + rows, y.to(x_out.dtype.element_ty), mask=is_row)


@dataclass(frozen=True, slots=True)
class Choice:
    """A token's experts, and what their choice is made from; the same tensors serve every layer.

    Attributes:
        shares: float32 [P, BLOCK_E], each program's part of the logits, before the norm's division.
        squares: float32 [P], each program's part of the residual's sum of squares.
        arrivals: int32 [1], programs that have written theirs; 0 between launches.
        ids: int32 [J], the chosen experts, then the shared ones.
        weights: float32 [K + 1], the chosen experts' scores, then what they are multiplied by.
        inverse: float32 [1], what the norm multiplies the residual by.
    """

    shares: Tensor
    squares: Tensor
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

    A thread holds its share of a tile in registers, so that all loads are under way at once: 32 kB for four warps are 64
    registers each.

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


def make_choice(weight: Tensor, config: RouterConfig, num_shared: int) -> Choice:
    """Room for the choices behind an output projection's weight [H, K]."""
    device = weight.device
    num_programs = triton.cdiv(weight.shape[0], choose_tile(weight).rows)
    num_chosen = config.num_experts_per_tok
    return Choice(
        shares=torch.empty(num_programs, triton.next_power_of_2(config.num_experts), device=device),
        squares=torch.empty(num_programs, device=device),
        arrivals=torch.zeros(1, dtype=torch.int32, device=device),
        ids=torch.zeros(num_chosen + num_shared, dtype=torch.int32, device=device),
        weights=torch.zeros(num_chosen + 1, device=device),
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
    if router is None or choice is None:
        _linear_residual_kernel[grid](
            attended, _words(weight), scale, bias, x, x_out, None, None, None, None, None, None, None, None, None,
            hidden_size, num_features, 0, 0.0, 1.0, KIND="softmax", NUM_EXPERTS=0, TOP_K=0, NUM_GROUPS=1, KEPT_GROUPS=1,
            NORMALISES=False, HAS_BIAS=bias is not None, BLOCK_E=1, BLOCK_P=1, BLOCK_S=1, **_options(tile, x.device),
        )  # fmt: skip
        return
    config = router.config
    block_e = choice.shares.shape[1]
    _linear_residual_kernel[grid](
        attended, _words(weight), scale, bias, x, x_out, router.gain, router.weight, router.choice_bias,
        choice.shares, choice.squares, choice.arrivals, choice.ids, choice.weights, choice.inverse,
        hidden_size, num_features, choice.ids.shape[0] - config.num_experts_per_tok, router.eps,
        config.routed_scaling_factor,
        KIND=config.kind, NUM_EXPERTS=config.num_experts, TOP_K=config.num_experts_per_tok,
        NUM_GROUPS=config.n_group, KEPT_GROUPS=config.topk_group, NORMALISES=config.norm_topk_prob,
        HAS_BIAS=bias is not None, BLOCK_E=block_e, BLOCK_P=max(4096 // block_e, 1), BLOCK_S=MAX_SHARED,
        **_options(tile, x.device),
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
    """
    num_places, width = act.shape
    tile = choose_tile(weight, rows=4)
    _gate_up_kernel[(triton.cdiv(width, tile.rows), num_places)](
        x, gain, None if choice is None else choice.inverse, None if choice is None else choice.ids,
        _words(weight), scale, bias, act, weight.shape[-1], width, eps,
        IS_ROUTED=choice is not None, HAS_BIAS=bias is not None, **_options(tile, x.device),
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
    _down_kernel[(triton.cdiv(hidden_size, tile.rows),)](
        act, None if choice is None else choice.ids, None if choice is None else choice.weights,
        _words(weight), scale, bias, x, x_out, hidden_size, width,
        TOP_K=0 if choice is None else choice.weights.shape[0] - 1, NUM_PLACES=act.shape[0],
        IS_ROUTED=choice is not None, HAS_BIAS=bias is not None, **_options(tile, x.device),
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
