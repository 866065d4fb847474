"""The kernels of one token's layer; `single_token.py` launches them and says what they are for.

H hidden_size, N rows of a weight, K features in, WIDTH of an expert.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.single_token_choice import LOGIT_STEPS, SQUARE_STEPS, choose, scores_of
from deepseek_engine.kernels.triton.single_token_rows import (
    fetch_ahead,
    operand_of,
    products_of,
    scales_and_biases,
    tile_of,
)


@triton.jit
def norm_linear_kernel(
    x, gain, weight, scale, bias, out, N, K, eps,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`single_token.norm_linear`: a program has BLOCK_N rows."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    let_next_begin(IS_DEPENDENT)
    tile = tile_of(weight, rows, is_row, K, 0, BLOCK_K, PACK)
    scales, biases = scales_and_biases(scale, bias, rows, is_row, PACK, HAS_BIAS)
    if HAS_NORM:
        gains = tl.load(gain + cols, mask=cols < K, other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        features = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        if chunk > 0:
            tile = tile_of(weight, rows, is_row, K, chunk, BLOCK_K, PACK)
            if HAS_NORM:
                gains = tl.load(gain + at, mask=at < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += features * features
            features *= gains
        first, second, step = operand_of(features, PACK)
        products += products_of(tile, first, second, PACK) * step
    y = tl.sum(products, axis=1)
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    y = y * scales + biases
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def linear_residual_kernel(
    attended, weight, scale, bias, x, x_out, gain, router, choice_bias, sums, arrivals, ids_out, weights_out,
    inverse_out, N, K, eps, factor,
    KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NUM_PLACES: tl.constexpr,
    NUM_GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, NORMALISES: tl.constexpr, HAS_BIAS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`single_token.linear_residual`: a program has BLOCK_N features; the last to arrive chooses the experts."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < N
    let_next_begin(IS_DEPENDENT)
    tile = tile_of(weight, rows, is_row, K, 0, BLOCK_K, PACK)
    scales, biases = scales_and_biases(scale, bias, rows, is_row, PACK, HAS_BIAS)
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
            tile = tile_of(weight, rows, is_row, K, chunk, BLOCK_K, PACK)
        features = tl.load(attended + at, mask=at < K, other=0.0).to(tl.float32)
        first, second, step = operand_of(features, PACK)
        products += products_of(tile, first, second, PACK) * step
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
            scores, chosen_by, inverse = scores_of(
                sums, choice_bias, N, eps, KIND, NUM_EXPERTS, NUM_GROUPS, KEPT_GROUPS, BLOCK_E
            )
            ids, weights = choose(scores, chosen_by, factor, KIND, NUM_EXPERTS, TOP_K, NORMALISES, BLOCK_E, BLOCK_J)
            places = tl.arange(0, BLOCK_J)
            tl.store(ids_out + places, ids, mask=places < NUM_PLACES)
            tl.store(weights_out + places, weights, mask=places < NUM_PLACES)
            tl.store(inverse_out, inverse)
            # For the next layer.
            tl.store(sums + experts, tl.zeros((BLOCK_E,), dtype=tl.int64))
            tl.store(sums + BLOCK_E, tl.zeros((), dtype=tl.int64))
            tl.store(arrivals, 0)


@triton.jit
def gate_up_kernel(
    x, gain, inverse_in, ids, weight, scale, bias, ahead, act, H, WIDTH, eps, ahead_bytes,
    IS_ROUTED: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PACK: tl.constexpr, NUM_AHEAD: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`single_token.gate_up`: a program has BLOCK_N gates and their ups, of one of the token's experts."""
    place = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < WIDTH
    gains = tl.load(gain + cols, mask=cols < H, other=0.0).to(tl.float32)
    if IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
        let_next_begin(IS_DEPENDENT)  # not before: `down` reads the chosen experts' weights without waiting for more
        expert = tl.load(ids + place)
        inverse = tl.load(inverse_in)
        weight += expert.to(tl.int64) * (2 * WIDTH * (H // PACK)).to(tl.int64)
    else:
        let_next_begin(IS_DEPENDENT)
        expert = 0
    gate_tile = tile_of(weight, rows, is_row, H, 0, BLOCK_K, PACK)
    up_tile = tile_of(weight, rows + WIDTH, is_row, H, 0, BLOCK_K, PACK)
    scale_at = scale + expert * (2 * WIDTH) if PACK > 1 else scale
    gate_scales, gate_biases = scales_and_biases(scale_at, bias, rows, is_row, PACK, HAS_BIAS)
    up_scales, up_biases = scales_and_biases(scale_at, bias, rows + WIDTH, is_row, PACK, HAS_BIAS)
    if not IS_ROUTED:
        wait_for_inputs(IS_DEPENDENT)
    gates = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    ups = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        at = chunk * BLOCK_K + cols
        features = tl.load(x + at, mask=at < H, other=0.0).to(tl.float32)
        if chunk > 0:
            gate_tile = tile_of(weight, rows, is_row, H, chunk, BLOCK_K, PACK)
            up_tile = tile_of(weight, rows + WIDTH, is_row, H, chunk, BLOCK_K, PACK)
            gains = tl.load(gain + at, mask=at < H, other=0.0).to(tl.float32)
        if not IS_ROUTED:
            squares += features * features
        features *= gains
        first, second, step = operand_of(features, PACK)
        gates += products_of(gate_tile, first, second, PACK) * step
        ups += products_of(up_tile, first, second, PACK) * step
    if not IS_ROUTED:
        inverse = tl.rsqrt(tl.sum(squares) / H + eps)
    gate = tl.sum(gates, axis=1) * inverse * gate_scales + gate_biases
    up = tl.sum(ups, axis=1) * inverse * up_scales + up_biases
    tl.store(act + place * WIDTH + rows, gate * tl.sigmoid(gate) * up, mask=is_row)
    if IS_ROUTED and place >= NUM_AHEAD:
        # What the next launch reads of this expert once it has waited for this one.
        share = tl.program_id(0).to(tl.int64) * 16384
        if share < ahead_bytes:
            fetch_ahead(ahead.to(tl.int64) + expert.to(tl.int64) * ahead_bytes + share, ahead_bytes - share)


@triton.jit
def _expert_tile(weight, ids, place, rows, is_row, H, WIDTH, chunk, BLOCK_K: tl.constexpr, PACK: tl.constexpr):
    """Of the down weights of the expert at a place; read past the first-level cache, which may hold an older choice."""
    expert = tl.load(ids + place, cache_modifier=".cg").to(tl.int64)
    return tile_of(weight + expert * (H * (WIDTH // PACK)).to(tl.int64), rows, is_row, WIDTH, chunk, BLOCK_K, PACK)


@triton.jit
def _expert_products(
    tile, act, ids, weights, scale, place, rows, is_row, H, WIDTH, chunk,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Those of a tile with the features of the expert at a place, times the expert's weight."""
    of_rows = tl.zeros((BLOCK_N,), dtype=tl.float32) + tl.load(weights + place)
    if PACK > 1:
        of_rows *= tl.load(scale + tl.load(ids + place).to(tl.int64) * H + rows, mask=is_row, other=0.0)
    at = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    features = tl.load(act + place * WIDTH + at, mask=at < WIDTH, other=0.0)
    first, second, step = operand_of(features, PACK)
    return products_of(tile, first, second, PACK) * (of_rows * step)[:, None]


@triton.jit
def down_kernel(
    act, ids, weights, weight, scale, bias, x, x_out, H, WIDTH,
    IS_ROUTED: tl.constexpr, NUM_PLACES: tl.constexpr, HAS_BIAS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PACK: tl.constexpr, NUM_AHEAD: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`single_token.down`: a program has BLOCK_N features of the residual, from all of the token's experts.

    The weights of the first NUM_AHEAD places are on their way before it waits: when it begins, `gate_up` has seen the
    choice, so that it is there.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    is_row = rows < H
    let_next_begin(IS_DEPENDENT)
    products = tl.zeros((BLOCK_N, BLOCK_K // PACK), dtype=tl.float32)
    if IS_ROUTED:
        if NUM_AHEAD > 0:
            first_tile = _expert_tile(weight, ids, 0, rows, is_row, H, WIDTH, 0, BLOCK_K, PACK)
        if NUM_AHEAD > 1:
            second_tile = _expert_tile(weight, ids, 1, rows, is_row, H, WIDTH, 0, BLOCK_K, PACK)
        wait_for_inputs(IS_DEPENDENT)
        before = tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
        if NUM_AHEAD > 0:
            products += _expert_products(
                first_tile, act, ids, weights, scale, 0, rows, is_row, H, WIDTH, 0, BLOCK_N, BLOCK_K, PACK
            )
        if NUM_AHEAD > 1:
            products += _expert_products(
                second_tile, act, ids, weights, scale, 1, rows, is_row, H, WIDTH, 0, BLOCK_N, BLOCK_K, PACK
            )
        for place in tl.range(NUM_AHEAD, NUM_PLACES, loop_unroll_factor=2):
            for chunk in tl.static_range(NUM_CHUNKS):
                tile = _expert_tile(weight, ids, place, rows, is_row, H, WIDTH, chunk, BLOCK_K, PACK)
                products += _expert_products(
                    tile, act, ids, weights, scale, place, rows, is_row, H, WIDTH, chunk, BLOCK_N, BLOCK_K, PACK
                )
        y = tl.sum(products, axis=1)
    else:
        tile = tile_of(weight, rows, is_row, WIDTH, 0, BLOCK_K, PACK)
        scales, biases = scales_and_biases(scale, bias, rows, is_row, PACK, HAS_BIAS)
        wait_for_inputs(IS_DEPENDENT)
        before = tl.load(x + rows, mask=is_row, other=0.0).to(tl.float32)
        for chunk in tl.static_range(NUM_CHUNKS):
            if chunk > 0:
                tile = tile_of(weight, rows, is_row, WIDTH, chunk, BLOCK_K, PACK)
            at = chunk * BLOCK_K + cols
            features = tl.load(act + at, mask=at < WIDTH, other=0.0)
            first, second, step = operand_of(features, PACK)
            products += products_of(tile, first, second, PACK) * step
        y = tl.sum(products, axis=1) * scales + biases
    tl.store(x_out + rows, (before + y).to(x_out.dtype.element_ty), mask=is_row)
