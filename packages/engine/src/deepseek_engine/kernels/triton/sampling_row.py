"""What the sampling kernels do with one row: read its record, its logits as they were adjusted, and its number.

A token's distance is how far its logit lies below the row's greatest, in float32; its weight is e to the power of minus
distance over temperature. Distances are not negative, so their bits order them as integers do, the likeliest first. The
order of a row's tokens is by distance, then by id.
"""

# pyright: basic, reportAttributeAccessIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.sampling_rows import (
    IN_ANSWER,
    IS_ADJUSTED,
    IS_FILTERED,
    IS_RANDOM,
    IS_REPORTED,
    RESULT_WORDS,
    ROW,
    ROW_BYTES,
)

WORDS_64 = tl.constexpr(ROW_BYTES // 8)
WORDS_32 = tl.constexpr(ROW_BYTES // 4)
RANDOM = tl.constexpr(IS_RANDOM)
FILTERED = tl.constexpr(IS_FILTERED)
ADJUSTED = tl.constexpr(IS_ADJUSTED)
REPORTED = tl.constexpr(IS_REPORTED)
ANSWER = tl.constexpr(IN_ANSWER)
RESULTS = tl.constexpr(RESULT_WORDS)

_FIELDS = dict(ROW.fields or {})
SEED, POSITION, COUNTS, TOP_P, MIN_P = (
    tl.constexpr(_FIELDS[name][1] // 8) for name in ("seed", "position", "counts_address", "top_p", "min_p")
)
TEMPERATURE, REPETITION, PRESENCE, FREQUENCY = (
    tl.constexpr(_FIELDS[name][1] // 4)
    for name in ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")
)
FLAGS, TOP_K, FORCED, MASK_AT, BIAS_AT, NUM_BIAS, FORBIDDEN_AT, NUM_FORBIDDEN = (
    tl.constexpr(_FIELDS[name][1] // 4)
    for name in ("flags", "top_k", "forced_token_id", "mask_at", "bias_at", "num_bias", "forbidden_at", "num_forbidden")
)

UNREACHABLE = tl.constexpr(0x7F800000)
"""The bits of an infinite distance: of tokens that may not be chosen."""


@triton.jit
def uniform(int64_ptr, row):
    """The row's number in [0, 1), float64: SplitMix64 of its seed and position, as `sampler.uniform` has it."""
    seed = tl.load(int64_ptr + row * WORDS_64 + SEED).to(tl.uint64, bitcast=True)
    position = tl.load(int64_ptr + row * WORDS_64 + POSITION).to(tl.uint64, bitcast=True)
    z = seed + (position + 1) * tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    z = (z ^ (z >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    bits = ((z ^ (z >> 31)) >> 11).to(tl.int64, bitcast=True)
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2 to the power of -53


@triton.jit
def inverse_temperature(float32_ptr, row):
    """Of a row that draws."""
    return 1.0 / tl.load(float32_ptr + row * WORDS_32 + TEMPERATURE)


@triton.jit
def load_logits(logits_ptr, adjusted_ptr, flags, at, is_inside, ADJUST: tl.constexpr):
    """Logits of a row, float32; those that its adjustments made if there are any. Pointers are the row's."""
    if ADJUST:
        is_adjusted = (flags & ADJUSTED) != 0
        values = tl.load(logits_ptr + at, mask=is_inside & (is_adjusted == 0), other=-float("inf")).to(tl.float32)
        changed = tl.load(adjusted_ptr + at, mask=is_inside & is_adjusted, other=-float("inf"))
        values = tl.where(is_adjusted, changed, values)
    else:
        values = tl.load(logits_ptr + at, mask=is_inside, other=-float("inf")).to(tl.float32)
    return values


@triton.jit
def distance_bits(logits, greatest):
    """Bits of each token's distance, int32; that of a token of minus infinity is UNREACHABLE."""
    distances = tl.where(logits == greatest, 0.0, greatest - logits)
    return tl.where(logits == -float("inf"), UNREACHABLE, distances.to(tl.int32, bitcast=True))


@triton.jit
def weights_of(bits, inverse_t):
    """Weights of distances, float64 of what is computed in float32; 0 where unreachable."""
    distances = bits.to(tl.float32, bitcast=True)
    return tl.where(bits < UNREACHABLE, tl.exp(-distances * inverse_t), 0.0).to(tl.float64)


@triton.jit
def combine_blocks(block_max_ptr, block_sum_ptr, row, num_blocks, inverse_t, BLOCKS: tl.constexpr):
    """Each block's greatest logit and its share of the weights relative to the row's greatest, and that one."""
    block = tl.arange(0, BLOCKS)
    at = row * num_blocks + block
    maxima = tl.load(block_max_ptr + at, mask=block < num_blocks, other=-float("inf"))
    greatest = tl.max(maxima, axis=0)
    sums = tl.load(block_sum_ptr + at, mask=block < num_blocks, other=0.0)
    below = tl.where(maxima == greatest, 0.0, greatest - maxima).to(tl.float64)
    return maxima, sums * tl.exp(-below * inverse_t), greatest


@triton.jit
def finish(token, row, int64_ptr, int32_ptr, out_ptr, results_ptr, vocab_size, ADJUST: tl.constexpr):
    """Write the row's token, the forced one if there is one, and count it among its answer's."""
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1)
    if ADJUST:
        forced = tl.load(int32_ptr + row * WORDS_32 + FORCED)
        token = tl.where(forced >= 0, forced, token)
        address = tl.load(int64_ptr + row * WORDS_64 + COUNTS)
        if address != 0:
            count_ptr = address.to(tl.pointer_type(tl.int32)) + token
            tl.store(count_ptr, tl.load(count_ptr) + ANSWER)
    tl.store(out_ptr + row, token.to(out_ptr.dtype.element_ty))
    tl.store(results_ptr + row * RESULTS, token)


@triton.jit
def collect_candidates(
    logits_ptr, adjusted_ptr, group_max_ptr, groups_ptr, candidates_ptr, flags, greatest, wanted,
    vocab_size, num_groups, GROUP: tl.constexpr, GROUPS: tl.constexpr, CAPACITY: tl.constexpr, ADJUST: tl.constexpr,
):  # fmt: skip
    """A row's first tokens in their order, at least `wanted` of them if there are as many.

    As many groups have a token at least as near as the `wanted`-th nearest group: what is as near as that is looked for
    in these groups alone. Tokens strictly nearer come first, so that what does not fit is the end of the order unless
    those alone do not fit.

    Returns:
        keys: int64 [CAPACITY], ascending: distance bits above the token id; the greatest int64 behind the last.
        count: how many there are.
        is_prefix: whether no token that belongs before one of them is missing.
        is_whole: whether they are all that may be chosen.
    """
    group = tl.arange(0, GROUPS)
    maxima = tl.load(group_max_ptr + group, mask=group < num_groups, other=-float("inf"))
    nearest = distance_bits(maxima, greatest)
    low = tl.full((), 0, tl.int32)
    high = tl.full((), UNREACHABLE, tl.int32)
    for _ in range(31):  # the least bits that `wanted` groups reach
        middle = low + (high - low) // 2
        is_enough = tl.sum((nearest <= middle).to(tl.int32), axis=0) >= wanted
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, tl.minimum(middle + 1, high))
    limit = high
    holds = (nearest <= limit) & (nearest < UNREACHABLE)
    tl.store(groups_ptr + tl.cumsum(holds.to(tl.int32), axis=0) - 1, group, mask=holds)
    num_held = tl.sum(holds.to(tl.int32), axis=0)
    tl.debug_barrier()  # every thread sees the list

    AT_ONCE: tl.constexpr = CAPACITY // GROUP
    count = tl.full((), 0, tl.int32)
    is_prefix = num_held >= 0
    is_cut = num_held < 0
    for phase in range(2):
        start = tl.full((), 0, tl.int32)
        while (start < num_held) & (count < CAPACITY):
            place = start + tl.arange(0, AT_ONCE)
            ids = tl.load(groups_ptr + place, mask=place < num_held, other=0)
            at = tl.reshape(ids[:, None] * GROUP + tl.arange(0, GROUP)[None, :], (AT_ONCE * GROUP,))
            is_held = tl.reshape((place < num_held)[:, None] & (tl.arange(0, GROUP)[None, :] >= 0), (AT_ONCE * GROUP,))
            is_inside = is_held & (at < vocab_size)
            bits = distance_bits(load_logits(logits_ptr, adjusted_ptr, flags, at, is_inside, ADJUST), greatest)
            belongs = tl.where(phase == 0, bits < limit, bits == limit) & is_inside & (bits < UNREACHABLE)
            to = count + tl.cumsum(belongs.to(tl.int32), axis=0) - 1
            keys = (bits.to(tl.int64) << 32) | at.to(tl.int64)
            tl.store(candidates_ptr + to, keys, mask=belongs & (to < CAPACITY))
            count += tl.sum(belongs.to(tl.int32), axis=0)
            start += AT_ONCE
        is_left = (start < num_held) | (count > CAPACITY)
        is_prefix = is_prefix & ((phase == 1) | (is_left == 0))
        is_cut = is_cut | is_left
        count = tl.minimum(count, CAPACITY)
    tl.debug_barrier()
    slot = tl.arange(0, CAPACITY)
    keys = tl.load(candidates_ptr + slot, mask=slot < count, other=0x7FFFFFFFFFFFFFFF)
    return tl.sort(keys), count, is_prefix, (limit == UNREACHABLE) & (is_cut == 0)
