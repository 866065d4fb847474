"""One token through a layer in four launches around attention: what batch 1 needs is few launches and full bandwidth.

A layer is: norm and projection in; attention; projection out, residual and the router's products; the choice of experts
and their gate and up products; their down products, weighted, and the residual. Every launch reads its weights once in
loads of 16 bytes that are all under way at the same time, and begins to while the launch before it ends.

The router costs no launch of its own: each program of the output projection holds a few features of the new residual,
multiplies them with the router's columns, and writes its share of the logits; whoever needs the choice adds the shares
up, in one order, so that all programs and all runs agree.

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

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs
from deepseek_engine.model_config import RouterConfig

MAX_TILE_WIDTH: Final = 2048
"""Features that a program reads of each row at a time."""

MAX_GROUPED_EXPERTS: Final = 256


@triton.jit
def _norm_linear_kernel(
    x, gain, weight, scale, bias, out, N, K, eps,
    HAS_NORM: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    pointers = weight + rows[:, None].to(tl.int64) * K + cols[None, :]
    let_next_begin(IS_DEPENDENT)
    tile = tl.load(pointers, mask=is_row[:, None] & (cols < K)[None, :], other=0.0)
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            tile = tl.load(pointers + chunk * BLOCK_K, mask=is_row[:, None] & (at < K)[None, :], other=0.0)
        features = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += features * features
            features *= tl.load(gain + at, mask=at < K, other=0.0).to(tl.float32)
        products += tile.to(tl.float32) * features[None, :]
    y = tl.sum(products, axis=1)
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    if HAS_SCALE:
        y *= tl.load(scale + rows, mask=is_row, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _linear_residual_kernel(
    attended, weight, scale, bias, x, x_out, gain, router, shares, squares, N, K,
    NUM_EXPERTS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    rows = program * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    pointers = weight + rows[:, None].to(tl.int64) * K + cols[None, :]
    let_next_begin(IS_DEPENDENT)
    tile = tl.load(pointers, mask=is_row[:, None] & (cols < K)[None, :], other=0.0)
    if NUM_EXPERTS > 0:
        experts = tl.arange(0, BLOCK_E)
        is_expert = experts < NUM_EXPERTS
        of_router = tl.load(
            router + experts[:, None] * N + rows[None, :], mask=is_expert[:, None] & is_row[None, :], other=0.0
        ).to(tl.float32)
        gains = tl.load(gain + rows, mask=is_row, other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            tile = tl.load(pointers + chunk * BLOCK_K, mask=is_row[:, None] & (at < K)[None, :], other=0.0)
        features = tl.load(attended + at, mask=at < K, other=0.0).to(tl.float32)
        products += tile.to(tl.float32) * features[None, :]
    y = tl.sum(products, axis=1)
    if HAS_SCALE:
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


@triton.jit
def _scores(
    shares, squares, choice_bias, H, eps, num_programs, KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What experts are weighted by, what they are chosen by, and what the residual is divided by, from the shares."""
    experts = tl.arange(0, BLOCK_E)
    programs = tl.arange(0, BLOCK_P)
    logits = tl.zeros((BLOCK_E,), dtype=tl.float32)
    total = 0.0
    for start in range(0, num_programs, BLOCK_P):
        at = start + programs
        part = tl.load(shares + at[:, None] * BLOCK_E + experts[None, :], mask=(at < num_programs)[:, None], other=0.0)
        logits += tl.sum(part, axis=0)
        total += tl.sum(tl.load(squares + at, mask=at < num_programs, other=0.0))
    inverse = tl.rsqrt(total / H + eps)
    logits = tl.where(experts < NUM_EXPERTS, logits * inverse, float("-inf"))
    if KIND == "sigmoid":
        scores = tl.where(experts < NUM_EXPERTS, tl.sigmoid(logits), 0.0)
        chosen_by = scores + tl.load(choice_bias + experts, mask=experts < NUM_EXPERTS, other=0.0)
        chosen_by = tl.where(experts < NUM_EXPERTS, chosen_by, float("-inf"))
    else:
        powers = tl.exp(logits - tl.max(logits))
        scores = powers / tl.sum(powers)
        chosen_by = tl.where(experts < NUM_EXPERTS, scores, float("-inf"))
    return scores, chosen_by, inverse


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
def _route_gate_up_kernel(
    x, gain, shares, squares, choice_bias, weight, scale, act, ids_out, weights_out, H, I, eps, factor, num_programs,
    KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NUM_GROUPS: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, NORMALISES: tl.constexpr, HAS_SCALE: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < I
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    scores, chosen_by, inverse = _scores(
        shares, squares, choice_bias, H, eps, num_programs, KIND, NUM_EXPERTS, BLOCK_E, BLOCK_P
    )
    if NUM_GROUPS > 1:
        chosen_by = _without_lesser_groups(chosen_by, KIND, NUM_GROUPS, KEPT_GROUPS, BLOCK_E)
    experts = tl.arange(0, BLOCK_E)
    expert = NUM_EXPERTS + place - TOP_K  # the shared ones lie behind the routed ones
    total = 1e-20
    for choice in tl.static_range(TOP_K):
        best = tl.argmax(chosen_by, axis=0)
        score = tl.sum(tl.where(experts == best, scores, 0.0))
        chosen_by = tl.where(experts == best, float("-inf"), chosen_by)
        total += score
        expert = tl.where(place == choice, best, expert)
        if (tl.program_id(0) == 0) & (place == choice):
            tl.store(ids_out + choice, best)
            tl.store(weights_out + choice, score)
    if (tl.program_id(0) == 0) & (place >= TOP_K):
        tl.store(ids_out + place, expert)
    if (tl.program_id(0) == 0) & (place == 0):
        # The weights are multiplied by this where they are used: no program has to wait for the others' sums.
        tl.store(weights_out + TOP_K, factor / total if NORMALISES else factor)
    base = weight + expert.to(tl.int64) * (2 * I * H).to(tl.int64)
    gate_at = base + rows[:, None].to(tl.int64) * H + cols[None, :]
    up_at = gate_at + I.to(tl.int64) * H
    gates = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        mask = is_row[:, None] & (at < H)[None, :]
        gate_tile = tl.load(gate_at + chunk * BLOCK_K, mask=mask, other=0.0)
        up_tile = tl.load(up_at + chunk * BLOCK_K, mask=mask, other=0.0)
        features = tl.load(x + at, mask=at < H, other=0.0).to(tl.float32)
        features *= tl.load(gain + at, mask=at < H, other=0.0).to(tl.float32)
        gates += gate_tile.to(tl.float32) * features[None, :]
        ups += up_tile.to(tl.float32) * features[None, :]
    gate = tl.sum(gates, axis=1) * inverse
    up = tl.sum(ups, axis=1) * inverse
    if HAS_SCALE:
        scale_at = scale + expert * (2 * I) + rows
        gate *= tl.load(scale_at, mask=is_row, other=0.0)
        up *= tl.load(scale_at + I, mask=is_row, other=0.0)
    tl.store(act + place * I + rows, gate * tl.sigmoid(gate) * up, mask=is_row)


@triton.jit
def _norm_gate_up_kernel(
    x, gain, weight, scale, bias, act, H, I, eps, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < I
    gate_at = weight + rows[:, None].to(tl.int64) * H + cols[None, :]
    up_at = gate_at + I.to(tl.int64) * H
    let_next_begin(IS_DEPENDENT)
    mask = is_row[:, None] & (cols < H)[None, :]
    gate_tile = tl.load(gate_at, mask=mask, other=0.0)
    up_tile = tl.load(up_at, mask=mask, other=0.0)
    wait_for_inputs(IS_DEPENDENT)
    gates = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        if chunk > 0:
            mask = is_row[:, None] & (at < H)[None, :]
            gate_tile = tl.load(gate_at + chunk * BLOCK_K, mask=mask, other=0.0)
            up_tile = tl.load(up_at + chunk * BLOCK_K, mask=mask, other=0.0)
        features = tl.load(x + at, mask=at < H, other=0.0).to(tl.float32)
        squares += features * features
        features *= tl.load(gain + at, mask=at < H, other=0.0).to(tl.float32)
        gates += gate_tile.to(tl.float32) * features[None, :]
        ups += up_tile.to(tl.float32) * features[None, :]
    inverse = tl.rsqrt(tl.sum(squares) / H + eps)
    gate = tl.sum(gates, axis=1) * inverse
    up = tl.sum(ups, axis=1) * inverse
    if HAS_SCALE:
        gate *= tl.load(scale + rows, mask=is_row, other=0.0)
        up *= tl.load(scale + I + rows, mask=is_row, other=0.0)
    if HAS_BIAS:
        gate += tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
        up += tl.load(bias + I + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(act + rows, gate * tl.sigmoid(gate) * up, mask=is_row)


@triton.jit
def _down_kernel(
    act, ids, weights, weight, scale, x, x_out, H, I,
    TOP_K: tl.constexpr, NUM_PLACES: tl.constexpr, HAS_SCALE: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < H
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    factor = tl.load(weights + TOP_K)
    products = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for place in tl.static_range(NUM_PLACES):
        expert = tl.load(ids + place)
        share = tl.load(weights + place) * factor if place < TOP_K else 1.0
        at_expert = weight + expert.to(tl.int64) * (H * I).to(tl.int64)
        pointers = at_expert + rows[:, None].to(tl.int64) * I + cols[None, :]
        of_rows = tl.full((BLOCK_N,), 1.0, dtype=tl.float32) * share
        if HAS_SCALE:
            of_rows *= tl.load(scale + expert * H + rows, mask=is_row, other=0.0)
        for chunk in tl.static_range(NUM_CHUNKS):
            at = chunk * BLOCK_K + cols
            tile = tl.load(pointers + chunk * BLOCK_K, mask=is_row[:, None] & (at < I)[None, :], other=0.0)
            features = tl.load(act + place * I + at, mask=at < I, other=0.0)
            products += tile.to(tl.float32) * features[None, :] * of_rows[:, None]
    y = tl.sum(products, axis=1) + tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(x_out + rows, y.to(x_out.dtype.element_ty), mask=is_row)


@dataclass(frozen=True, slots=True)
class RouterShares:
    """What the output projection leaves for the choice of experts.

    Attributes:
        shares: float32 [P, BLOCK_E], each program's part of the logits, before the norm's division.
        squares: float32 [P], each program's part of the residual's sum of squares.
    """

    shares: Tensor
    squares: Tensor


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: int
    width: int
    num_chunks: int
    num_warps: int


def choose_tile(num_features: int, itemsize: int, *, rows: int = 8, tiles: int = 1) -> _Tile:
    """How a program cuts its weight: rows at a time, features at a time, warps.

    A thread holds its share of a tile in registers, so that all loads are under way at once: 32 kB for four warps are 64
    registers each.

    Args:
        num_features: of a row.
        itemsize: bytes of a weight.
        rows: of a bfloat16 weight, per tile.
        tiles: how many there are of that size in a program.
    """
    width = min(triton.next_power_of_2(num_features), MAX_TILE_WIDTH)
    rows = max(rows * 2 // itemsize // tiles, 2)
    return _Tile(rows, width, -(-num_features // width), 4)


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
    tile = choose_tile(num_features, weight.element_size())
    is_dependent = has_dependent_launch(x.device)
    _norm_linear_kernel[(triton.cdiv(num_rows, tile.rows),)](
        x, gain, weight, scale, bias, out, num_rows, num_features, eps,
        HAS_NORM=gain is not None, HAS_SCALE=scale is not None, HAS_BIAS=bias is not None,
        NUM_CHUNKS=tile.num_chunks, BLOCK_N=tile.rows, BLOCK_K=tile.width,
        IS_DEPENDENT=is_dependent, num_warps=tile.num_warps, launch_pdl=is_dependent,
    )  # fmt: skip


def num_router_shares(weight: Tensor) -> int:
    """Programs of `linear_residual` for this weight: rows that `RouterShares` needs."""
    tile = choose_tile(weight.shape[1], weight.element_size())
    return triton.cdiv(weight.shape[0], tile.rows)


def make_router_shares(num_programs: int, num_experts: int, device: torch.device) -> RouterShares:
    """Room for the shares of a router's logits."""
    width = triton.next_power_of_2(num_experts)
    return RouterShares(torch.empty(num_programs, width, device=device), torch.empty(num_programs, device=device))


def linear_residual(
    attended: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    x: Tensor,
    x_out: Tensor,
    gain: Tensor | None = None,
    router: Tensor | None = None,
    shares: RouterShares | None = None,
) -> None:
    """`x_out = x + attended W^T + b` for one token, and the router's shares of it, in one launch.

    Args:
        attended: [K].
        weight: [H, K], float, or int8 with its scale.
        scale: float32 [H] of an int8 weight.
        bias: [H].
        x: [H], the residual stream.
        x_out: [H]; not x.
        gain: [H], of the norm before the router.
        router: [E, H]; None where the layer has none.
        shares: written where there is a router.
    """
    hidden_size, num_features = weight.shape
    tile = choose_tile(num_features, weight.element_size())
    is_dependent = has_dependent_launch(x.device)
    _linear_residual_kernel[(triton.cdiv(hidden_size, tile.rows),)](
        attended, weight, scale, bias, x, x_out, gain, router,
        None if shares is None else shares.shares, None if shares is None else shares.squares,
        hidden_size, num_features,
        NUM_EXPERTS=0 if router is None else router.shape[0], HAS_SCALE=scale is not None, HAS_BIAS=bias is not None,
        NUM_CHUNKS=tile.num_chunks, BLOCK_N=tile.rows, BLOCK_K=tile.width,
        BLOCK_E=1 if shares is None else shares.shares.shape[1],
        IS_DEPENDENT=is_dependent, num_warps=tile.num_warps, launch_pdl=is_dependent,
    )  # fmt: skip


def can_route(config: RouterConfig) -> bool:
    """Whether `route_gate_up` knows this way of choosing."""
    sizes = (config.num_experts, config.n_group)
    are_powers = all(size & (size - 1) == 0 for size in sizes)
    return config.kind in ("softmax", "sigmoid") and (config.n_group == 1 or are_powers)


def route_gate_up(
    x: Tensor,
    gain: Tensor,
    eps: float,
    shares: RouterShares,
    config: RouterConfig,
    choice_bias: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    act: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
) -> None:
    """Choose a token's experts, and compute `silu(gate) * up` of each, in one launch.

    Args:
        x: [H], the residual stream.
        gain: [H], of the norm.
        eps: of the norm.
        shares: what `linear_residual` left.
        config: how experts are chosen; see `can_route`.
        choice_bias: float32 [E], of the sigmoid kind.
        weight: [E + shared, 2 I, H], float, or int8 with its scale.
        scale: float32 [E + shared, 2 I] of an int8 weight.
        act: float32 [J, I]; J - num_experts_per_tok shared experts are those behind the routed ones.
        expert_ids: int32 [J], written.
        expert_weights: float32 [J + 1], written: the chosen experts' scores, then what they are multiplied by.
    """
    _, double_width, hidden_size = weight.shape
    num_places, width = act.shape
    tile = choose_tile(hidden_size, weight.element_size(), tiles=2)
    is_dependent = has_dependent_launch(x.device)
    _route_gate_up_kernel[(triton.cdiv(width, tile.rows), num_places)](
        x, gain, shares.shares, shares.squares, choice_bias, weight, scale, act, expert_ids, expert_weights,
        hidden_size, double_width // 2, eps, config.routed_scaling_factor, shares.shares.shape[0],
        KIND=config.kind, NUM_EXPERTS=config.num_experts, TOP_K=config.num_experts_per_tok,
        NUM_GROUPS=config.n_group, KEPT_GROUPS=config.topk_group, NORMALISES=config.norm_topk_prob,
        HAS_SCALE=scale is not None, NUM_CHUNKS=tile.num_chunks, BLOCK_N=tile.rows, BLOCK_K=tile.width,
        BLOCK_E=shares.shares.shape[1], BLOCK_P=max(2048 // shares.shares.shape[1], 1),
        IS_DEPENDENT=is_dependent, num_warps=tile.num_warps, launch_pdl=is_dependent,
    )  # fmt: skip


def norm_gate_up(
    x: Tensor,
    gain: Tensor,
    eps: float,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    act: Tensor,
) -> None:
    """`act = silu(gate) * up` of a dense network for one token, norm included, in one launch.

    Args:
        x: [H], the residual stream.
        gain: [H], of the norm.
        eps: of the norm.
        weight: [2 I, H], float, or int8 with its scale.
        scale: float32 [2 I] of an int8 weight.
        bias: [2 I].
        act: float32 [I].
    """
    double_width, hidden_size = weight.shape
    tile = choose_tile(hidden_size, weight.element_size(), tiles=2)
    is_dependent = has_dependent_launch(x.device)
    _norm_gate_up_kernel[(triton.cdiv(double_width // 2, tile.rows),)](
        x, gain, weight, scale, bias, act, hidden_size, double_width // 2, eps,
        HAS_SCALE=scale is not None, HAS_BIAS=bias is not None,
        NUM_CHUNKS=tile.num_chunks, BLOCK_N=tile.rows, BLOCK_K=tile.width,
        IS_DEPENDENT=is_dependent, num_warps=tile.num_warps, launch_pdl=is_dependent,
    )  # fmt: skip


def experts_down(
    act: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    num_routed: int,
    weight: Tensor,
    scale: Tensor | None,
    x: Tensor,
    x_out: Tensor,
) -> None:
    """`x_out = x + sum of weighted down products` of a token's experts, in one launch.

    Args:
        act: float32 [J, I].
        expert_ids: int32 [J].
        expert_weights: float32 [J + 1], as `route_gate_up` writes it.
        num_routed: the first so many experts are weighted, the others count whole.
        weight: [E + shared, H, I], float, or int8 with its scale.
        scale: float32 [E + shared, H] of an int8 weight.
        x: [H], the residual stream.
        x_out: [H]; not x.
    """
    _, hidden_size, width = weight.shape
    tile = choose_tile(width, weight.element_size(), rows=4)
    is_dependent = has_dependent_launch(x.device)
    _down_kernel[(triton.cdiv(hidden_size, tile.rows),)](
        act, expert_ids, expert_weights, weight, scale, x, x_out, hidden_size, width,
        TOP_K=num_routed, NUM_PLACES=act.shape[0], HAS_SCALE=scale is not None,
        NUM_CHUNKS=tile.num_chunks, BLOCK_N=tile.rows, BLOCK_K=tile.width,
        IS_DEPENDENT=is_dependent, num_warps=tile.num_warps, launch_pdl=is_dependent,
    )  # fmt: skip
