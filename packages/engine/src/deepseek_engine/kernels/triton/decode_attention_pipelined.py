"""Attention of one new token a row for many rows: tiles of keys come through shared memory, several on their way.

The twin of `decode_attention`'s own kernel, which asks for the first tiles before the kernel in front ends and holds
them in registers: that wins while a row's latency counts. With hundreds of rows, or an INT8 cache, what counts is how
many loads are on their way, and this one has more. Measured on an H100 (seed-3.4b, W3, 256 rows of 640 tokens): 26,684
tokens/s against 25,884 in bfloat16, 31,551 against 26,694 with an INT8 cache. Since then `decode_attention_vectors`
serves many rows of small groups; this one is left with large groups, and with 9 to 23 rows of an INT8 cache.

B rows, N query heads, K key/value heads, G = N / K query heads a key/value head, D head_dim, M blocks of a row.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import triton
import triton.language as tl

from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton.decode_call import DecodeCall
from deepseek_engine.kernels.triton.launch import (
    let_next_begin,
    num_multiprocessors,
    power_of_two,
    wait_for_inputs,
)
from deepseek_engine.kernels.triton.rope_and_cache import angles_of, gains_of, quantised, rotated

PROGRAMS_A_MULTIPROCESSOR = 4
"""What keeps enough loads on their way, and evens out the end."""

COMBINED_ELEMENTS = 4096
"""Numbers of partial results that are added up at a time: 32 a thread."""

MIN_ROWS = 48
MIN_ROWS_OF_INT8 = 9
"""Rows of a batch from which on this kernel is chosen, by the cache's type."""


@dataclass(frozen=True, slots=True)
class PipelinedConfig:
    """How a launch is cut.

    Attributes:
        num_splits: shares of the longest rows; a dimension of the grid.
        min_split: tokens of a share at least; a multiple of block_n.
        block_n: tokens of a step.
        num_warps: of a program.
        num_stages: steps of which loads are on their way, and two.
    """

    num_splits: int
    min_split: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 6


def is_pipelined(batch: int, kv: PagedKV) -> bool:
    """Whether this kernel is the faster one for so many rows."""
    return batch >= (MIN_ROWS if kv.key_scales is None else MIN_ROWS_OF_INT8)


def choose_pipelined_config(batch: int, kv: PagedKV, max_context: int, element_bytes: int) -> PipelinedConfig:
    """By shapes alone, as graphs need it; arguments as of `decode_attention.choose_config`."""
    block_n = 32 if element_bytes == 4 else 64
    programs = batch * kv.num_heads
    wanted = PROGRAMS_A_MULTIPROCESSOR * num_multiprocessors(kv.keys.device)
    # Few programs: short shares, so that even a short context keeps the card busy. Many: two shares for the long rows.
    min_split = 128 if programs < wanted else 1024
    num_splits = max(-(-wanted // programs), 2 if max_context > min_split else 1)
    return PipelinedConfig(min(num_splits, -(-max_context // min_split)), min_split, block_n)


@triton.jit(do_not_specialize=["num_splits", "min_split", "block_tables", "context_lens", "table_stride"])
def _decode_attention_pipelined(
    qkv, out, keys, values, key_scales, value_scales, cos_sin, q_norm, k_norm, block_tables, context_lens,
    partials, totals, counters, qkv_stride, table_stride, num_splits, min_split, scale, eps,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    COMBINED: tl.constexpr, IS_FUSED: tl.constexpr, HAS_NORM: tl.constexpr, IS_INT8: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    context = tl.load(context_lens + row)
    group = tl.arange(0, BLOCK_G)[:, None]
    features = tl.arange(0, BLOCK_D)[None, :]
    q_mask = (group < GROUP) & (features < D)
    out += (row * KV_HEADS + head) * GROUP * D
    share = tl.maximum(tl.cdiv(tl.cdiv(context, num_splits), BLOCK_N) * BLOCK_N, min_split)
    begin = split * share
    if begin >= context:
        if split == 0:  # a row of padding: what comes after must not meet what nobody wrote
            tl.store(out + group * D + features, tl.zeros((BLOCK_G, BLOCK_D), out.dtype.element_ty), mask=q_mask)
        return
    end = tl.minimum(begin + share, context)
    num_shares = tl.cdiv(context, share)

    table = block_tables + row * table_stride
    source = qkv + row * qkv_stride
    dtype = qkv.dtype.element_ty
    largest = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    weighted = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    if IS_FUSED:
        angles = cos_sin + (context - 1).to(tl.int64) * (2 * D)
        first_head = source + (head * GROUP + group) * D
        cos, sin = angles_of(angles, features, D)
        gain, swapped_gain = gains_of(q_norm, features, D, HAS_NORM)
        q = rotated(first_head, features, q_mask, cos, sin, gain, swapped_gain, eps, D, HAS_NORM).to(dtype)
        if end == context:  # the new token is this program's: it begins with it, and the cache gets it
            one = tl.zeros((1, 1), tl.int32)
            source += (KV_HEADS * GROUP + head) * D
            is_feature = features < D
            gain, swapped_gain = gains_of(k_norm, features, D, HAS_NORM)
            k = rotated(source + one, features, is_feature, cos, sin, gain, swapped_gain, eps, D, HAS_NORM).to(dtype)
            v = tl.load(source + KV_HEADS * D + features, mask=is_feature, other=0.0)
            end = context - 1
            slot = tl.load(table + end // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE + end % BLOCK_SIZE
            place = slot * KV_HEADS + head
            if IS_INT8:
                whole, k_scale = quantised(k.to(tl.float32))
                tl.store(keys + place * D + features, whole.to(tl.int8), mask=is_feature)
                tl.store(key_scales + place + tl.zeros((1,), tl.int32), k_scale)
                k_used = whole * k_scale[:, None]
                whole, v_scale = quantised(v.to(tl.float32))
                tl.store(values + place * D + features, whole.to(tl.int8), mask=is_feature)
                tl.store(value_scales + place + tl.zeros((1,), tl.int32), v_scale)
                v_used = whole * v_scale[:, None]
            else:
                tl.store(keys + place * D + features, k, mask=is_feature)
                tl.store(values + place * D + features, v, mask=is_feature)
                k_used = k.to(tl.float32)
                v_used = v.to(tl.float32)
            largest = tl.sum(q.to(tl.float32) * k_used, axis=1) * scale
            total += 1.0
            weighted += v_used
    else:
        q = tl.load(source + (head * GROUP + group) * D + features, mask=q_mask, other=0.0)

    is_feature = features < D
    for start in range(begin, end, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        is_token = tokens < end
        block = tl.load(table + tokens // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        places = (block * BLOCK_SIZE + tokens % BLOCK_SIZE) * KV_HEADS + head
        offsets, mask = places[:, None] * D + features, is_token[:, None] & is_feature
        k = tl.load(keys + offsets, mask=mask, other=0)
        if IS_INT8:
            k = k.to(tl.float32).to(dtype)  # exact: bfloat16 has 8 bits
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if IS_INT8:
            scores *= tl.load(key_scales + places, mask=is_token, other=0.0)[None, :]
        scores = tl.where(is_token[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(largest - higher)
        total = total * kept + tl.sum(weights, axis=1)
        if IS_INT8:
            weights *= tl.load(value_scales + places, mask=is_token, other=0.0)[None, :]
        v = tl.load(values + offsets, mask=mask, other=0)
        if IS_INT8:
            v = v.to(tl.float32).to(dtype)
        weighted = tl.dot(weights.to(dtype), v, weighted * kept[:, None], input_precision="ieee")
        largest = higher

    if num_shares == 1:
        result = weighted / total[:, None]
        tl.store(out + group * D + features, result.to(out.dtype.element_ty), mask=q_mask)
        return
    first = (row * KV_HEADS + head) * num_splits
    heads = tl.arange(0, BLOCK_G)
    place = (first + split) * GROUP + heads
    tl.store(totals + place * 2, largest, mask=heads < GROUP)
    tl.store(totals + place * 2 + 1, total, mask=heads < GROUP)
    tl.store(partials + place[:, None] * D + features, weighted, mask=q_mask)
    combine_if_last(
        partials, totals, counters + row * KV_HEADS + head, out, first, num_shares, GROUP, D, BLOCK_D, COMBINED
    )  # fmt: skip


@triton.jit
def combine_shares(
    partials, totals, out, first, num_shares,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, COMBINED: tl.constexpr,
):  # fmt: skip
    """Add up a row's and head's shares, COMBINED at a time, and write its query heads."""
    features = tl.arange(0, BLOCK_D)[None, :]
    is_feature = features < D
    for one in tl.range(GROUP, loop_unroll_factor=2):
        largest = float("-inf")
        total = 0.0
        weighted = tl.zeros((BLOCK_D,), tl.float32)
        for start in range(0, num_shares, COMBINED):
            shares = start + tl.arange(0, COMBINED)
            is_share = shares < num_shares
            places = (first + shares) * GROUP + one
            # Others wrote these: past the first-level cache, which does not hear of it.
            tops = tl.load(totals + places * 2, mask=is_share, other=float("-inf"), cache_modifier=".cg")
            sums = tl.load(totals + places * 2 + 1, mask=is_share, other=0.0, cache_modifier=".cg")
            mask = is_share[:, None] & is_feature
            parts = tl.load(partials + places[:, None] * D + features, mask=mask, other=0.0, cache_modifier=".cg")
            higher = tl.maximum(largest, tl.max(tops, axis=0))
            factors = tl.exp2(tops - higher)
            kept = tl.exp2(largest - higher)
            total = total * kept + tl.sum(sums * factors, axis=0)
            weighted = weighted * kept + tl.sum(parts * factors[:, None], axis=0)
            largest = higher
        result = (weighted / total)[None, :]
        tl.store(out + one * D + features, result.to(out.dtype.element_ty), mask=is_feature)


@triton.jit
def combine_if_last(
    partials, totals, counter, out, first, num_shares,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, COMBINED: tl.constexpr,
):  # fmt: skip
    """Arrive with a share that is stored; whoever does so last adds all shares up."""
    tl.debug_barrier()  # the whole program's stores come before its arrival
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_shares - 1:
        tl.store(counter, 0)  # for the next launch
        combine_shares(partials, totals, out, first, num_shares, GROUP, D, BLOCK_D, COMBINED)


def launch_pipelined(call: DecodeCall, config: PipelinedConfig) -> None:
    """Launch it."""
    block_dim = power_of_two(call.kv.head_dim)
    _decode_attention_pipelined[call.grid(config.num_splits)](
        *call.arguments(config.num_splits, config.min_split), **call.options(),
        BLOCK_G=call.block_group, BLOCK_N=config.block_n,
        COMBINED=max(1, COMBINED_ELEMENTS // block_dim), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
