"""The first pass over logits: adjustments, and of each block the greatest logit and the sum of weights."""

# pyright: basic, reportAttributeAccessIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.sampling_row import (
    ADJUSTED,
    ANSWER,
    BIAS_AT,
    COUNTS,
    FLAGS,
    FORBIDDEN_AT,
    FREQUENCY,
    MASK_AT,
    NUM_BIAS,
    NUM_FORBIDDEN,
    PRESENCE,
    RANDOM,
    REPETITION,
    REPORTED,
    WORDS_32,
    WORDS_64,
    distance_bits,
    inverse_temperature,
    weights_of,
)

ENTRIES = tl.constexpr(128)
"""Of bias and forbidden tokens, looked at in one go."""


@triton.jit
def _adjust(values, row, at, is_inside, adjusted_ptr, int64_ptr, int32_ptr, float32_ptr, start, BLOCK: tl.constexpr):
    """A block's logits after penalties, bias, forbidden tokens and the grammar's mask, in `penalties.py`'s order."""
    fields = int32_ptr + row * WORDS_32
    floats = float32_ptr + row * WORDS_32
    address = tl.load(int64_ptr + row * WORDS_64 + COUNTS)
    if address != 0:
        counts_ptr = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)
        counts = tl.load(counts_ptr + at, mask=is_inside, other=0)
        repetition = tl.load(floats + REPETITION)
        penalised = tl.where(values > 0.0, tl.div_rn(values, repetition), values * repetition)
        in_answer = counts // ANSWER  # whole, as counts are not negative
        penalised -= tl.load(floats + FREQUENCY) * in_answer.to(tl.float32)
        penalised -= tl.where(in_answer > 0, tl.load(floats + PRESENCE), 0.0)
        values = tl.where(counts > 0, penalised, values)
    mask_at = tl.load(fields + MASK_AT)
    if mask_at >= 0:
        words = tl.load(int32_ptr + mask_at + (at >> 5), mask=is_inside, other=0)
        values = tl.where(((words >> (at & 31)) & 1) != 0, values, -float("inf"))
    tl.store(adjusted_ptr + at, values, mask=is_inside)
    num_bias = tl.load(fields + NUM_BIAS)
    num_forbidden = tl.load(fields + NUM_FORBIDDEN)
    if num_bias + num_forbidden > 0:
        # Entries of other threads' tokens: what a thread changes has to be there, and be seen by the others.
        tl.debug_barrier()
        entry = tl.arange(0, ENTRIES)
        bias_at = tl.load(fields + BIAS_AT)
        first = tl.full((), 0, tl.int32)
        while first < num_bias:
            is_entry = first + entry < num_bias
            ids = tl.load(int32_ptr + bias_at + first + entry, mask=is_entry, other=-1)
            bias = tl.load(float32_ptr + bias_at + num_bias + first + entry, mask=is_entry, other=0.0)
            is_mine = (ids >= start) & (ids < start + BLOCK)
            old = tl.load(adjusted_ptr + ids, mask=is_mine, other=0.0)
            tl.store(adjusted_ptr + ids, old + bias, mask=is_mine)
            first += ENTRIES
        tl.debug_barrier()
        forbidden_at = tl.load(fields + FORBIDDEN_AT)
        first = tl.full((), 0, tl.int32)
        while first < num_forbidden:
            ids = tl.load(int32_ptr + forbidden_at + first + entry, mask=first + entry < num_forbidden, other=-1)
            is_mine = (ids >= start) & (ids < start + BLOCK)
            tl.store(adjusted_ptr + ids, tl.full((ENTRIES,), -float("inf"), tl.float32), mask=is_mine)
            first += ENTRIES
        tl.debug_barrier()
        values = tl.load(adjusted_ptr + at, mask=is_inside, other=-float("inf"))
    return values


@triton.jit
def scan_kernel(
    logits_ptr, adjusted_ptr, int64_ptr, int32_ptr, float32_ptr,
    block_max_ptr, block_id_ptr, block_sum_ptr, group_max_ptr,
    vocab_size, stride, adjusted_stride, num_blocks, num_groups,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
    ADJUST: tl.constexpr, DRAW: tl.constexpr, FILTER: tl.constexpr, REPORT: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program a block of a row.

    With REPORT: only rows that report, as the model gave them and at temperature 1.
    """
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    flags = tl.load(int32_ptr + row * WORDS_32 + FLAGS)
    if REPORT:  # noqa: SIM102 - decided when compiling, the next when running
        if (flags & REPORTED) == 0:
            return
    start = block * BLOCK
    at = start + tl.arange(0, BLOCK)
    is_inside = at < vocab_size
    values = tl.load(logits_ptr + row * stride + at, mask=is_inside, other=-float("inf")).to(tl.float32)
    if ADJUST:  # noqa: SIM102 - decided when compiling, the next when running
        if (flags & ADJUSTED) != 0:
            adjusted_row = adjusted_ptr + row * adjusted_stride
            values = _adjust(values, row, at, is_inside, adjusted_row, int64_ptr, int32_ptr, float32_ptr, start, BLOCK)
    greatest = tl.max(values, axis=0)
    if not REPORT:
        token = tl.min(tl.where(values == greatest, at, vocab_size), axis=0)
        tl.store(block_id_ptr + row * num_blocks + block, token)
    tl.store(block_max_ptr + row * num_blocks + block, greatest)
    if FILTER or REPORT:
        per_block: tl.constexpr = BLOCK // GROUP
        group = block * per_block + tl.arange(0, per_block)
        maxima = tl.max(tl.reshape(values, (per_block, GROUP)), axis=1)
        tl.store(group_max_ptr + row * num_groups + group, maxima)
    if DRAW or REPORT:  # noqa: SIM102 - decided when compiling, the next when running
        if REPORT or (flags & RANDOM) != 0:
            inverse_t = 1.0
            if not REPORT:
                inverse_t = inverse_temperature(float32_ptr, row)
            weights = weights_of(distance_bits(values, greatest), inverse_t)
            tl.store(block_sum_ptr + row * num_blocks + block, tl.sum(weights, axis=0))
