"""Choosing a row's token from what the first pass left: the greatest, a draw from all, or a draw from candidates."""

# pyright: basic, reportAttributeAccessIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.sampling_row import (
    FILTERED,
    FLAGS,
    MIN_P,
    RANDOM,
    TOP_K,
    TOP_P,
    WORDS_32,
    WORDS_64,
    collect_candidates,
    combine_blocks,
    distance_bits,
    finish,
    inverse_temperature,
    load_logits,
    uniform,
    weights_of,
)


@triton.jit
def _draw_from_all(
    logits_ptr, adjusted_ptr, flags, maxima, sums, number, inverse_t, vocab_size,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, ADJUST: tl.constexpr,
):  # fmt: skip
    """The first token, by id, at which the running sum of weights exceeds the number's share of the total."""
    block = tl.arange(0, BLOCKS)
    ends = tl.cumsum(sums, axis=0)
    total = tl.max(ends, axis=0)
    target = number * total
    # A rounding may put the number at the very end: the last block that has any weight holds it then.
    last = tl.max(tl.where(sums > 0.0, block, 0), axis=0)
    chosen = tl.minimum(tl.sum((ends <= target).to(tl.int32), axis=0), last)
    is_chosen = block == chosen
    before = tl.max(tl.where(block < chosen, ends, 0.0), axis=0)
    share = tl.sum(tl.where(is_chosen, sums, 0.0), axis=0)
    greatest = tl.max(tl.where(is_chosen, maxima, -float("inf")), axis=0)
    at = chosen * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < vocab_size
    bits = distance_bits(load_logits(logits_ptr, adjusted_ptr, flags, at, is_inside, ADJUST), greatest)
    weights = weights_of(bits, inverse_t)  # relative to the block's own greatest: its sum is in other units
    running = tl.cumsum(weights, axis=0)
    wanted = (target - before) / share * tl.sum(weights, axis=0)
    exceeding = tl.min(tl.where((running > wanted) & (weights > 0.0), at, vocab_size), axis=0)
    return tl.where(exceeding < vocab_size, exceeding, tl.max(tl.where(weights > 0.0, at, 0), axis=0))


@triton.jit
def _draw_from_candidates(
    keys, count, is_prefix, is_whole, total, number, inverse_t, top_k, top_p, min_p, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Top-k, of those the nucleus, of those the ones above min-p, then a draw; as `filters.draw_filtered` has it.

    Returns:
        the token, and whether it is decided: False where more tokens than the candidates might remain.
    """
    index = tl.arange(0, CAPACITY)
    is_there = index < count
    weights = tl.where(is_there, weights_of((keys >> 32).to(tl.int32), inverse_t), 0.0)
    running = tl.cumsum(weights, axis=0)
    has_top_k, has_top_p = top_k > 0, top_p < 1.0
    kept = tl.where(has_top_k, tl.minimum(top_k, count), count)
    is_decided = (has_top_k & (top_k <= count)) | is_whole
    # The nucleus is a share of what top-k has left, so candidates that do not hold all of that decide nothing.
    may_decide = (has_top_k == 0) | is_decided
    kept_sum = tl.sum(tl.where(index == kept - 1, running, 0.0), axis=0)
    mass = tl.where(has_top_k, kept_sum, total)
    in_nucleus = (running - weights < top_p * mass) & (index < kept)
    nucleus = tl.where(has_top_p, tl.sum(in_nucleus.to(tl.int32), axis=0), kept)
    is_decided = is_decided | (may_decide & (nucleus < kept))
    is_likely = (weights >= min_p) & (index < nucleus)  # the likeliest weighs 1
    likely = tl.sum(is_likely.to(tl.int32), axis=0)
    is_decided = is_decided | (may_decide & (likely < nucleus))
    likely = tl.maximum(likely, 1)
    target = number * tl.sum(tl.where(index == likely - 1, running, 0.0), axis=0)
    place = tl.minimum(tl.sum(((running <= target) & is_there).to(tl.int32), axis=0), likely - 1)
    token = tl.sum(tl.where(index == place, keys & 0x7FFFFFFF, 0), axis=0).to(tl.int32)
    return token, is_decided & is_prefix


@triton.jit
def choose_kernel(
    logits_ptr, adjusted_ptr, int64_ptr, float64_ptr, int32_ptr, float32_ptr,
    block_max_ptr, block_id_ptr, block_sum_ptr, group_max_ptr, groups_ptr, candidates_ptr, is_undecided_ptr,
    out_ptr, results_ptr, vocab_size, stride, adjusted_stride, num_blocks, num_groups, candidates_stride,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr, CAPACITY: tl.constexpr,
    ADJUST: tl.constexpr, DRAW: tl.constexpr, FILTER: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    logits_ptr += row * stride
    adjusted_ptr += row * adjusted_stride
    flags = tl.load(int32_ptr + row * WORDS_32 + FLAGS)
    block = tl.arange(0, BLOCKS)
    first = tl.load(block_max_ptr + row * num_blocks + block, mask=block < num_blocks, other=-float("inf"))
    ids = tl.load(block_id_ptr + row * num_blocks + block, mask=block < num_blocks, other=vocab_size)
    token = tl.min(tl.where(first == tl.max(first, axis=0), ids, vocab_size), axis=0)
    is_decided = token >= 0
    if DRAW:  # noqa: SIM102 - decided when compiling, the next when running
        if (flags & RANDOM) != 0:
            inverse_t = inverse_temperature(float32_ptr, row)
            number = uniform(int64_ptr, row)
            maxima, sums, greatest = combine_blocks(block_max_ptr, block_sum_ptr, row, num_blocks, inverse_t, BLOCKS)
            if FILTER:
                if (flags & FILTERED) != 0:
                    top_k = tl.load(int32_ptr + row * WORDS_32 + TOP_K)
                    wanted = tl.where((top_k > 0) & (top_k < CANDIDATES), top_k, CANDIDATES)
                    keys, count, is_prefix, is_whole = collect_candidates(
                        logits_ptr, adjusted_ptr, group_max_ptr + row * num_groups, groups_ptr + row * num_groups,
                        candidates_ptr + row * candidates_stride, flags, greatest, wanted, vocab_size, num_groups,
                        GROUP, GROUPS, CAPACITY, ADJUST,
                    )  # fmt: skip
                    token, is_decided = _draw_from_candidates(
                        keys, count, is_prefix, is_whole, tl.sum(sums, axis=0), number, inverse_t, top_k,
                        tl.load(float64_ptr + row * WORDS_64 + TOP_P), tl.load(float64_ptr + row * WORDS_64 + MIN_P),
                        CAPACITY,
                    )  # fmt: skip
                else:
                    token = _draw_from_all(
                        logits_ptr, adjusted_ptr, flags, maxima, sums, number, inverse_t, vocab_size,
                        BLOCK, BLOCKS, ADJUST,
                    )  # fmt: skip
            else:
                token = _draw_from_all(
                    logits_ptr, adjusted_ptr, flags, maxima, sums, number, inverse_t, vocab_size, BLOCK, BLOCKS, ADJUST
                )
    if FILTER:
        tl.store(is_undecided_ptr + row, (is_decided == 0).to(tl.int32))
    if is_decided:
        finish(token, row, int64_ptr, int32_ptr, out_ptr, results_ptr, vocab_size, ADJUST)
