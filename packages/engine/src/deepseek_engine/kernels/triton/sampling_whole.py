"""Draws for the few rows whose filters keep more tokens than candidates are sorted: exact, by walking through the row.

A boundary is a place in the row's order, by distance and then by id; what is kept is all that is not behind it. Each
filter moves the boundary forward, and the draw is one more: the first place at which the running sum exceeds a share of
what is kept. A place is found by walking through the row with eight limits at once, which narrows distances down to an
eighth each time, until one token or one distance is left.
"""

# pyright: basic, reportAttributeAccessIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.sampling_row import (
    FLAGS,
    MIN_P,
    TOP_K,
    TOP_P,
    UNREACHABLE,
    WORDS_32,
    WORDS_64,
    combine_blocks,
    distance_bits,
    finish,
    inverse_temperature,
    load_logits,
    uniform,
    weights_of,
)

LIMITS = tl.constexpr(8)
FIRST_LIMIT = tl.constexpr(0x3E800000)
"""Distance 1/4: the first walk's limits double from here, since that is where logits lie."""
BINADE = tl.constexpr(1 << 23)


@triton.jit
def whole_row_kernel(
    logits_ptr, adjusted_ptr, int64_ptr, float64_ptr, int32_ptr, float32_ptr, block_max_ptr, block_sum_ptr,
    is_undecided_ptr, out_ptr, results_ptr, stride, adjusted_stride, num_blocks,
    VOCAB: tl.constexpr, BLOCKS: tl.constexpr, TILE: tl.constexpr, ADJUST: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program a row; nothing to do where `choose_kernel` has decided. With VOCAB fixed, loops are pipelined."""
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    if tl.load(is_undecided_ptr + row) == 0:
        return
    logits_ptr += row * stride
    adjusted_ptr += row * adjusted_stride
    flags = tl.load(int32_ptr + row * WORDS_32 + FLAGS)
    inverse_t = inverse_temperature(float32_ptr, row)
    number = uniform(int64_ptr, row)
    _, _, greatest = combine_blocks(block_max_ptr, block_sum_ptr, row, num_blocks, inverse_t, BLOCKS)
    top_k = tl.load(int32_ptr + row * WORDS_32 + TOP_K)
    top_p = tl.load(float64_ptr + row * WORDS_64 + TOP_P)
    least = tl.full((), 0.0, tl.float64)
    end_bits = tl.full((), UNREACHABLE, tl.int32) - 1  # the boundary, inclusive
    end_id = tl.full((), VOCAB, tl.int32)
    limit = tl.arange(0, LIMITS)
    for stage in range(3):  # top-k, top-p, and the draw from what they and min-p leave
        if (stage == 2) | ((stage == 0) & (top_k > 0)) | ((stage == 1) & (top_p < 1.0)):
            least = tl.where(stage == 2, tl.load(float64_ptr + row * WORDS_64 + MIN_P), least)
            low = tl.full((), 0, tl.int32)
            high = end_bits + 1
            count_low = tl.full((), 0, tl.int32)
            sum_low = tl.full((), 0.0, tl.float64)
            num_between = tl.full((), VOCAB, tl.int32)
            target = tl.full((), 0.0, tl.float64)
            is_first = low == 0
            while is_first | ((num_between > 1) & (high - low > 1)):
                step = tl.maximum((high - low) // LIMITS, 1)
                ends = tl.where(is_first, FIRST_LIMIT + limit * BINADE, low + (limit + 1) * step)
                ends = tl.where(limit == LIMITS - 1, high, tl.minimum(ends, high))
                counts = tl.zeros((LIMITS,), tl.int32)
                sums = tl.zeros((LIMITS,), tl.float64)
                for start in range(0, VOCAB, TILE):
                    at = start + tl.arange(0, TILE)
                    is_inside = at < VOCAB
                    bits = distance_bits(load_logits(logits_ptr, adjusted_ptr, flags, at, is_inside, ADJUST), greatest)
                    weights = weights_of(bits, inverse_t)
                    is_kept = (bits < end_bits) | ((bits == end_bits) & (at <= end_id))
                    is_kept = is_kept & is_inside & (weights >= least)
                    is_near = is_kept[None, :] & (bits[None, :] < ends[:, None])
                    counts += tl.sum(is_near.to(tl.int32), axis=1)
                    sums += tl.sum(tl.where(is_near, weights[None, :], 0.0), axis=1)
                if is_first:  # the last limit is past all that is kept
                    total = tl.max(sums, axis=0)
                    share = tl.where(stage == 1, top_p, number)
                    target = tl.where(stage == 0, (top_k - 1).to(tl.float64), share * total)
                reached = tl.where(stage == 0, counts.to(tl.float64), sums)
                # The nucleus ends where its share is reached, the others where more than the target is.
                is_past = (reached > target) | ((stage == 1) & (reached >= target))
                hit = tl.minimum(tl.sum((is_past == 0).to(tl.int32), axis=0), LIMITS - 1)
                is_before = limit < hit
                low = tl.maximum(low, tl.max(tl.where(is_before, ends, 0), axis=0))
                high = tl.sum(tl.where(limit == hit, ends, 0), axis=0)
                count_low = tl.maximum(count_low, tl.max(tl.where(is_before, counts, 0), axis=0))
                sum_low = tl.maximum(sum_low, tl.max(tl.where(is_before, sums, 0.0), axis=0))
                num_between = tl.sum(tl.where(limit == hit, counts, 0), axis=0) - count_low
                is_first = low < 0
            # What is left is one token, or several of one distance and weight, in the order of their ids.
            weight = tl.max(weights_of(tl.full((1,), 0, tl.int32) + low, inverse_t), axis=0)
            weight = tl.where(weight > 0.0, weight, 1.0)
            rank = tl.where(stage == 0, target - count_low, (target - sum_low) / weight)
            rank = tl.where(stage == 1, tl.ceil(rank) - 1.0, tl.floor(rank))
            rank = tl.minimum(tl.maximum(rank, 0.0), (num_between - 1).to(tl.float64)).to(tl.int32)
            seen = tl.full((), 0, tl.int32)
            found_id = tl.full((), -1, tl.int32)
            found_bits = tl.full((), -1, tl.int32)
            for start in range(0, VOCAB, TILE):
                at = start + tl.arange(0, TILE)
                is_inside = at < VOCAB
                bits = distance_bits(load_logits(logits_ptr, adjusted_ptr, flags, at, is_inside, ADJUST), greatest)
                is_kept = (bits < end_bits) | ((bits == end_bits) & (at <= end_id))
                is_kept = is_kept & is_inside & (weights_of(bits, inverse_t) >= least)
                is_left = (is_kept & (bits >= low) & (bits < high)).to(tl.int32)
                is_found = (is_left != 0) & (seen + tl.cumsum(is_left, axis=0) - 1 == rank)
                found_id = tl.maximum(found_id, tl.max(tl.where(is_found, at, -1), axis=0))
                found_bits = tl.maximum(found_bits, tl.max(tl.where(is_found, bits, -1), axis=0))
                seen += tl.sum(is_left, axis=0)
            # Not found where a share of almost 1 is never reached: everything stays.
            end_bits = tl.where(found_id >= 0, found_bits, end_bits)
            end_id = tl.where(found_id >= 0, found_id, end_id)
    finish(end_id, row, int64_ptr, int32_ptr, out_ptr, results_ptr, VOCAB, ADJUST)
