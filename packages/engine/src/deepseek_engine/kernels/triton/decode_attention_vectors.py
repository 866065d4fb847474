"""Attention of one new token a row in small programs of plain arithmetic: no matrix units, and no thread waits.

The twin of `decode_attention`'s own kernel, which pads a group's two query heads to the 16 rows of a matrix product and
whose warps meet several times a tile: for maxima, sums and the operands' layouts. Here a thread keeps the maximum, the
sum and the weighted values of its own tokens, and threads meet once, at the end. A program is one warp or two, so that
many are on a multiprocessor and their loads on their way. Measured on an H100 (seed-3.4b's heads, a layer's attention):
256 rows of 640 tokens take 157 us instead of 220 with an INT8 cache and 231 instead of 242 in bfloat16; in float32,
which has no matrix units without TF32, half as long at every size. A few rows are faster with matrix units: a head's
work is then one multiprocessor's, unless it is cut so small that adding up shares costs more.

B rows, N query heads, K key/value heads, G = N / K query heads a key/value head, D head_dim, M blocks of a row.
A tile is R tokens for each of S slots: a slot is the lanes that hold one token's features. Tensors are [S, G, R, D], or
1 where they do not differ: in this order, everything that is loaded takes the layout of the tiles by itself.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import triton
import triton.language as tl

from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton.decode_attention_pipelined import combine_if_last
from deepseek_engine.kernels.triton.decode_call import DecodeCall
from deepseek_engine.kernels.triton.launch import (
    let_next_begin,
    power_of_two,
    wait_for_inputs,
)
from deepseek_engine.kernels.triton.rope_and_cache import angles_of, gains_of

MAX_GROUP = 4
"""Query heads a key/value head: the products of each are instructions of their own."""

MIN_ROWS = 48
MIN_ROWS_OF_INT8 = 24
"""Of a batch in 16 bits, by the cache's type: fewer are faster with matrix units."""

WANTED_PROGRAMS = 2048
"""16 a multiprocessor of an H100."""

LOWEST = tl.constexpr(-1e30)
"""Below every score: a slot without tokens has it, and nothing is divided by its sum."""


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """How a launch is cut.

    Attributes:
        num_splits: shares of the longest rows; a dimension of the grid.
        min_split: tokens of a share at least.
        tokens_a_slot: R.
        num_warps: of a program.
    """

    num_splits: int
    min_split: int
    tokens_a_slot: int
    num_warps: int = 1

    def num_slots(self, kv: PagedKV) -> int:
        """S: a lane reads 16 bytes."""
        lanes = max(power_of_two(kv.head_dim) * kv.keys.element_size() // 16, 1)
        return max(32 * self.num_warps // lanes, 1)


def serves_vectors(batch: int, num_heads: int, kv: PagedKV, element_bytes: int) -> bool:
    """Whether this kernel is the faster one for so many rows and heads."""
    min_rows = 1 if element_bytes == 4 else MIN_ROWS if kv.key_scales is None else MIN_ROWS_OF_INT8
    return num_heads // kv.num_heads <= MAX_GROUP and batch >= min_rows


def choose_vector_config(batch: int, kv: PagedKV, max_context: int) -> VectorConfig:
    """By shapes alone, as graphs need it; arguments as of `decode_attention.choose_config`."""
    tokens_a_slot = {1: 2, 2: 8, 4: 8}[kv.keys.element_size()]
    num_warps = 2 if kv.keys.element_size() == 4 else 1
    num_splits = -(-WANTED_PROGRAMS // (num_warps * batch * kv.num_heads))
    if num_splits == 1:  # adding shares up costs more than it spreads, but for the longest rows
        num_splits, min_split = 2, 1024
    else:
        num_splits = min(num_splits, 64)
        min_split = 128 if num_splits == 2 else 64 if num_splits <= 8 else 32
    return VectorConfig(min(num_splits, -(-max_context // min_split)), min_split, tokens_a_slot, num_warps)


@triton.jit
def _rotated(head, wide, mask, cos, sin, gain, swapped_gain, eps, D: tl.constexpr, HAS_NORM: tl.constexpr):
    """As `rotated`, of heads [1, G, 1, 1], once a slot: no thread waits for another's part."""
    x = tl.load(head + wide, mask=mask, other=0.0).to(tl.float32)
    swapped = tl.load(head + (wide + D // 2) % D, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = 1.0 / tl.sqrt(tl.sum(x * x, axis=3, keep_dims=True) / D + eps)
        x *= factor * gain
        swapped *= factor * swapped_gain
    return x * cos + swapped * sin


@triton.jit
def _cached(x, cache, scales, place, wide, is_writer, D: tl.constexpr, IS_INT8: tl.constexpr):
    """Write a head of the new token, [S, 1, 1, D], from where it is its writer; what the cache then says, float32."""
    mask = (wide < D) & is_writer
    x = x.to(tl.float32)
    if IS_INT8:
        largest = tl.max(tl.abs(x), axis=3, keep_dims=True)
        # As in `quantised`: the sum is rounded to the nearest, to even on a tie.
        whole = (x * (127.0 / tl.maximum(largest, 1e-30)) + 12582912.0) - 12582912.0
        tl.store(cache + place * D + wide, whole.to(tl.int8), mask=mask)
        tl.store(scales + place + tl.zeros(largest.shape, tl.int32), largest / 127.0, mask=is_writer)
        x = whole * (largest / 127.0)
    else:
        tl.store(cache + place * D + wide, x.to(cache.dtype.element_ty), mask=mask)
    return x


@triton.jit
def _joined(top, total, weighted, other_top, other_total, other_weighted):
    """Two softmaxes' maxima, sums and weighted values, as those of the one over both."""
    higher = tl.maximum(top, other_top)
    kept, others = tl.exp2(top - higher), tl.exp2(other_top - higher)
    return higher, total * kept + other_total * others, weighted * kept + other_weighted * others


@triton.jit(do_not_specialize=["num_splits", "min_split", "block_tables", "context_lens", "table_stride"])
def _decode_attention_vectors(
    qkv, out, keys, values, key_scales, value_scales, cos_sin, q_norm, k_norm, block_tables, context_lens,
    partials, totals, counters, qkv_stride, table_stride, num_splits, min_split, scale, eps,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, COMBINED: tl.constexpr,
    IS_FUSED: tl.constexpr, HAS_NORM: tl.constexpr, IS_INT8: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    let_next_begin(IS_DEPENDENT)
    if not IS_FUSED:  # the kernel in front has written keys
        wait_for_inputs(IS_DEPENDENT)
    context = tl.load(context_lens + row)
    group = tl.arange(0, BLOCK_G)[:, None]
    features = tl.arange(0, BLOCK_D)[None, :]
    q_mask = (group < GROUP) & (features < D)
    out += (row * KV_HEADS + head) * GROUP * D
    BLOCK_N: tl.constexpr = BLOCK_R * BLOCK_S
    share = tl.maximum(tl.cdiv(tl.cdiv(context, num_splits), BLOCK_N) * BLOCK_N, min_split)
    begin = split * share
    if begin >= context:
        if split == 0:  # a row of padding: what comes after must not meet what nobody wrote
            if IS_FUSED:
                wait_for_inputs(IS_DEPENDENT)
            tl.store(out + group * D + features, tl.zeros((BLOCK_G, BLOCK_D), out.dtype.element_ty), mask=q_mask)
        return
    end = tl.minimum(begin + share, context)
    table = block_tables + row * table_stride
    slot = tl.arange(0, BLOCK_S)[:, None, None, None]
    slots = tl.arange(0, BLOCK_R)[None, None, :, None] * BLOCK_S + slot
    wide = tl.arange(0, BLOCK_D)[None, None, None, :]
    each = wide + slot * 0
    source = qkv + row * qkv_stride
    of_group = tl.arange(0, BLOCK_G)[None, :, None, None]
    is_query = (of_group < GROUP) & (each < D)
    first_head = source + (head * GROUP + of_group) * D
    largest = tl.full((BLOCK_S, BLOCK_G, 1, 1), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_S, BLOCK_G, 1, 1), tl.float32)
    weighted = tl.zeros((BLOCK_S, BLOCK_G, 1, BLOCK_D), tl.float32)
    if IS_FUSED:
        is_new = end == context  # of this program is the new token, which the first slot has and no tile
        end = tl.minimum(end, context - 1)
        last_block = tl.load(table + (context - 1) // BLOCK_SIZE)
        cos, sin = angles_of(cos_sin + (context - 1).to(tl.int64) * (2 * D), each, D)
        q_gain, swapped_q_gain = gains_of(q_norm, each, D, HAS_NORM)
        k_gain, swapped_k_gain = gains_of(k_norm, each, D, HAS_NORM)
        place = (last_block.to(tl.int64) * BLOCK_SIZE + (context - 1) % BLOCK_SIZE) * KV_HEADS + head
        is_writer = is_new & (slot == 0)
        wait_for_inputs(IS_DEPENDENT)
        new = source + (KV_HEADS * GROUP + head) * D
        is_feature = (each < D) & is_new
        new_v = tl.load(new + KV_HEADS * D + each, mask=is_feature, other=0.0)
        new_k = _rotated(new, each, is_feature, cos, sin, k_gain, swapped_k_gain, eps, D, HAS_NORM)
        q = _rotated(first_head, each, is_query, cos, sin, q_gain, swapped_q_gain, eps, D, HAS_NORM)
        q = q.to(qkv.dtype.element_ty).to(tl.float32) * scale
        new_k = _cached(new_k.to(qkv.dtype.element_ty), keys, key_scales, place, each, is_writer, D, IS_INT8)
        new_v = _cached(new_v, values, value_scales, place, each, is_writer, D, IS_INT8)
        largest = tl.where(is_writer, tl.sum(q * new_k, axis=3, keep_dims=True), largest)
        total = tl.where(is_writer, 1.0, total)
        weighted = tl.where(is_writer, new_v, weighted)
    else:
        q = tl.load(first_head + each, mask=is_query, other=0.0).to(tl.float32) * scale
    for start in range(begin, end, BLOCK_N):
        tokens = start + slots
        is_token = tokens < end
        blocks = tl.load(table + tokens.to(tl.uint32) // BLOCK_SIZE, mask=is_token, other=0)  # unsigned: a shift
        places = (blocks.to(tl.int64) * BLOCK_SIZE + tokens.to(tl.uint32) % BLOCK_SIZE) * KV_HEADS + head
        k = tl.load(keys + places * D + wide, mask=is_token & (wide < D), other=0)
        v = tl.load(values + places * D + wide, mask=is_token & (wide < D), other=0)
        scores = tl.sum(q * k.to(tl.float32), axis=3, keep_dims=True)
        if IS_INT8:
            scores *= tl.load(key_scales + places, mask=is_token, other=0.0)
        scores = tl.where(is_token, scores, LOWEST)
        higher = tl.maximum(largest, tl.max(scores, axis=2, keep_dims=True))
        weights = tl.where(is_token, tl.exp2(scores - higher), 0.0)
        kept = tl.exp2(largest - higher)
        total = total * kept + tl.sum(weights, axis=2, keep_dims=True)
        if IS_INT8:
            weights *= tl.load(value_scales + places, mask=is_token, other=0.0)
        weighted = weighted * kept + tl.sum(weights * v.to(tl.float32), axis=2, keep_dims=True)
        largest = higher

    top, sums = tl.broadcast_to(largest, weighted.shape), tl.broadcast_to(total, weighted.shape)
    top, sums, result = tl.reduce((top, sums, weighted), 0, _joined)
    result = tl.reshape(result, (BLOCK_G, BLOCK_D))
    top, sums = tl.reshape(top, (BLOCK_G, BLOCK_D)), tl.reshape(sums, (BLOCK_G, BLOCK_D))
    num_shares = tl.cdiv(context, share)
    if num_shares == 1:
        tl.store(out + group * D + features, (result / sums).to(out.dtype.element_ty), mask=q_mask)
        return
    first = (row * KV_HEADS + head) * num_splits
    places = (first + split) * GROUP + group
    is_first = q_mask & (features == 0)
    tl.store(totals + places * 2 + features, top, mask=is_first)
    tl.store(totals + places * 2 + 1 + features, sums, mask=is_first)
    tl.store(partials + places * D + features, result, mask=q_mask)
    combine_if_last(
        partials, totals, counters + row * KV_HEADS + head, out, first, num_shares, GROUP, D, BLOCK_D, COMBINED
    )  # fmt: skip


def launch_vectors(call: DecodeCall, config: VectorConfig) -> None:
    """Launch it."""
    _decode_attention_vectors[call.grid(config.num_splits)](
        *call.arguments(config.num_splits, config.min_split), **call.options(),
        BLOCK_G=power_of_two(call.group), BLOCK_R=config.tokens_a_slot, BLOCK_S=config.num_slots(call.kv),
        COMBINED=2 * config.num_warps, num_warps=config.num_warps, num_stages=1,
    )  # fmt: skip
