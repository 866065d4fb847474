"""Attention of one new token a row over its paged cache, with norm, rotation and the cache write, in one launch.

B rows, N query heads, K key/value heads, G = N / K query heads a key/value head, D head_dim, M blocks of a row.

A program is one key/value head of one row and a share of its context ("split"). The shares are cut on the device by the
row's own length, so a graph that was captured for the longest context costs a short one no more than programs that end
at once. Whoever finishes last of a row and head adds the shares up: no second launch.

A program holds two tiles of keys and values in registers: the one it multiplies with and the one on its way. Where the
launch itself caches the new token, it asks for both before the kernel in front has ended: of that it needs `qkv` alone.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.kernels.triton.decode_attention_pipelined import (
    PipelinedConfig,
    choose_pipelined_config,
    combine_if_last,
    is_pipelined,
    launch_pipelined,
)
from deepseek_engine.kernels.triton.decode_attention_vectors import (
    VectorConfig,
    choose_vector_config,
    launch_vectors,
    serves_vectors,
)
from deepseek_engine.kernels.triton.decode_call import DecodeCall, DecodeScratch
from deepseek_engine.kernels.triton.launch import (
    let_next_begin,
    num_multiprocessors,
    power_of_two,
    wait_for_inputs,
)
from deepseek_engine.kernels.triton.rope_and_cache import angles_of, gains_of, quantised, rotated

LOG2_E = 1.4426950408889634
"""Exponentials are powers of 2: scores are scaled by it."""

TILE_BYTES = 8192
"""Of keys that four warps hold of a step, and of values: of two steps they are half their registers."""

MANY_REGISTERS = 168
"""A thread, so that three programs of four warps fit on a multiprocessor; the compiler would take a few more."""

SHORT_SPLIT = 64
"""Tokens of a share at least, where a row's latency counts. Measured on an H100 (seed-3.4b, one row of 256 tokens, a
layer in a chain): 33.5 us in bfloat16 where shares of 128 by 8 warps take 35.9; 28.0 and 30.3 with INT8 weights."""

MIN_SPLIT = 128
"""Tokens of a share at least, where programs are more."""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How a launch is cut.

    Attributes:
        num_splits: shares of the longest rows; a dimension of the grid.
        min_split: tokens of a share at least; a multiple of block_n.
        block_n: tokens of a step.
        num_warps: of a program.
        max_registers: a thread; None is what the compiler likes.
    """

    num_splits: int
    min_split: int
    block_n: int
    num_warps: int = 4
    max_registers: int | None = None


def choose_config(batch: int, kv: PagedKV, max_context: int, element_bytes: int) -> DecodeConfig:
    """By shapes alone, as graphs need it.

    All programs that have work are to fit on the card at once, and few that have none to stand before the next launch.

    Args:
        batch: rows, those of padding included.
        kv: the layer's cache.
        max_context: tokens that the block tables have room for.
        element_bytes: of an activation; 4 is multiplied without matrix units.
    """
    block_dim = power_of_two(kv.head_dim)
    block_n = min(max(TILE_BYTES // (element_bytes * block_dim), 16), 64)
    programs, places = batch * kv.num_heads, num_multiprocessors(kv.keys.device)
    if 2 * programs <= places:  # a row's latency counts: a tile a program, one program a multiprocessor
        block_n = min(2 * block_n, SHORT_SPLIT)
        return DecodeConfig(min(places // programs, -(-max_context // SHORT_SPLIT)), SHORT_SPLIT, block_n)
    max_registers = MANY_REGISTERS if element_bytes == 2 and block_dim <= 128 else None
    # Where there are enough programs, adding shares up costs more than it spreads, but for the longest rows.
    num_splits = 3 * places // programs
    num_splits, min_split = (num_splits, MIN_SPLIT) if num_splits > 1 else (2, 1024)
    num_splits = min(num_splits, -(-max_context // min_split))
    return DecodeConfig(num_splits, min_split, block_n, max_registers=max_registers)


AnyConfig = DecodeConfig | PipelinedConfig | VectorConfig
"""Of one of the three kernels."""


def decode_scratch(max_batch: int, num_heads: int, kv: PagedKV, max_context: int, element_bytes: int) -> DecodeScratch:
    """Room for every batch up to `max_batch` rows whose block tables hold up to `max_context` tokens."""
    device = kv.keys.device
    batches = range(1, max_batch + 1)
    rows = max(batch * _config(batch, num_heads, kv, max_context, element_bytes).num_splits for batch in batches)
    return DecodeScratch(
        torch.empty(rows * num_heads * kv.head_dim, dtype=torch.float32, device=device),
        torch.empty(rows * num_heads * 2, dtype=torch.float32, device=device),
        torch.zeros(max_batch * kv.num_heads, dtype=torch.int32, device=device),
    )


def _config(batch: int, num_heads: int, kv: PagedKV, max_context: int, element_bytes: int) -> AnyConfig:
    """How the kernel that serves this batch is cut."""
    if serves_vectors(batch, num_heads, kv, element_bytes):
        return choose_vector_config(batch, kv, max_context)
    choose = choose_pipelined_config if is_pipelined(batch, kv) else choose_config
    return choose(batch, kv, max_context, element_bytes)


@triton.jit
def _tile(
    keys, values, key_scales, value_scales, blocks, tokens, end, head, features,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    """Keys and values of some tokens, and their scales; 0 from `end` on."""
    is_token = tokens < end
    places = (blocks.to(tl.int64) * BLOCK_SIZE + tokens.to(tl.uint32) % BLOCK_SIZE) * KV_HEADS + head
    offsets, mask = places[:, None] * D + features, is_token[:, None] & (features < D)
    k = tl.load(keys + offsets, mask=mask, other=0)
    v = tl.load(values + offsets, mask=mask, other=0)
    k_scales, v_scales = 0.0, 0.0
    if IS_INT8:
        k_scales = tl.load(key_scales + places, mask=is_token, other=0.0)
        v_scales = tl.load(value_scales + places, mask=is_token, other=0.0)
    return k, v, k_scales, v_scales


@triton.jit
def _repeated(rows, BLOCK_G: tl.constexpr):
    """[R, ...] to [BLOCK_G, ...], again and again: what a matrix product has room for, and nobody reads twice."""
    if rows.shape[0] < BLOCK_G:
        TIMES: tl.constexpr = BLOCK_G // rows.shape[0]
        if len(rows.shape) == 1:
            rows = tl.reshape(tl.broadcast_to(rows[None, :], (TIMES, rows.shape[0])), (BLOCK_G,))
        else:
            wide = tl.broadcast_to(rows[None, :, :], (TIMES, rows.shape[0], rows.shape[1]))
            rows = tl.reshape(wide, (BLOCK_G, rows.shape[1]))
    return rows


@triton.jit
def _blocks(table, tokens, end, BLOCK_SIZE: tl.constexpr):
    """The block of each token; unsigned numbers are divided by a shift."""
    return tl.load(table + tokens.to(tl.uint32) // BLOCK_SIZE, mask=tokens < end, other=0)


@triton.jit
def _cached(x, cache, scales, place, features, is_new, D: tl.constexpr, IS_INT8: tl.constexpr):
    """Write a head of the new token, [1, features], where it is this program's; what the cache then says, float32."""
    mask = (features < D) & is_new
    if IS_INT8:
        whole, scale = quantised(x.to(tl.float32))
        tl.store(cache + place * D + features, whole.to(tl.int8), mask=mask)
        tl.store(scales + place + tl.zeros((1,), tl.int32), scale, mask=is_new)
        used = whole * scale[:, None]
    else:
        tl.store(cache + place * D + features, x, mask=mask)
        used = x.to(tl.float32)
    return used


@triton.jit(do_not_specialize=["num_splits", "min_split", "block_tables", "context_lens", "table_stride"])
def _decode_attention(  # noqa: C901 - one program, from its share of the context to the row's result
    qkv, out, keys, values, key_scales, value_scales, cos_sin, q_norm, k_norm, block_tables, context_lens,
    partials, totals, counters, qkv_stride, table_stride, num_splits, min_split, scale, eps,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    COMBINED: tl.constexpr, IS_FUSED: tl.constexpr, HAS_NORM: tl.constexpr, IS_INT8: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
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
    share = tl.maximum(tl.cdiv(tl.cdiv(context, num_splits), BLOCK_N) * BLOCK_N, min_split)
    begin = split * share
    if begin >= context:
        if split == 0:  # a row of padding: what comes after must not meet what nobody wrote
            if IS_FUSED:
                wait_for_inputs(IS_DEPENDENT)
            tl.store(out + group * D + features, tl.zeros((BLOCK_G, BLOCK_D), out.dtype.element_ty), mask=q_mask)
        return
    end = tl.minimum(begin + share, context)
    is_new = end == context  # of this program is the new token; where the launch caches it, no tile holds it
    if IS_FUSED:
        end = tl.minimum(end, context - 1)

    table = block_tables + row * table_stride
    tokens = begin + tl.arange(0, BLOCK_N)
    blocks, next_blocks = _blocks(table, tokens, end, BLOCK_SIZE), _blocks(table, tokens + BLOCK_N, end, BLOCK_SIZE)
    if IS_FUSED:
        last_block = tl.load(table + (context - 1) // BLOCK_SIZE)
        cos, sin = angles_of(cos_sin + (context - 1).to(tl.int64) * (2 * D), features, D)
        q_gain, swapped_q_gain = gains_of(q_norm, features, D, HAS_NORM)
        k_gain, swapped_k_gain = gains_of(k_norm, features, D, HAS_NORM)
    k, v, k_scales, v_scales = _tile(
        keys, values, key_scales, value_scales, blocks, tokens, end, head, features, KV_HEADS, D, BLOCK_SIZE, IS_INT8
    )
    next_k, next_v, next_k_scales, next_v_scales = _tile(
        keys, values, key_scales, value_scales, next_blocks, tokens + BLOCK_N, end, head, features,
        KV_HEADS, D, BLOCK_SIZE, IS_INT8,
    )  # fmt: skip
    next_blocks = _blocks(table, tokens + 2 * BLOCK_N, end, BLOCK_SIZE)

    source = qkv + row * qkv_stride
    dtype = qkv.dtype.element_ty
    largest = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    weighted = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    of_group = tl.arange(0, BLOCK_Q)[:, None]
    is_query = (of_group < GROUP) & (features < D)
    first_head = source + (head * GROUP + of_group) * D
    if IS_FUSED:
        wait_for_inputs(IS_DEPENDENT)
        new = source + (KV_HEADS * GROUP + head) * D + tl.zeros((1, 1), tl.int32)
        new_v = tl.load(new + KV_HEADS * D + features, mask=(features < D) & is_new, other=0.0)
        new_k = rotated(
            new, features, (features < D) & is_new, cos, sin, k_gain, swapped_k_gain, eps, D, HAS_NORM
        ).to(dtype)  # fmt: skip
        q = rotated(first_head, features, is_query, cos, sin, q_gain, swapped_q_gain, eps, D, HAS_NORM).to(dtype)
        place = (last_block.to(tl.int64) * BLOCK_SIZE + (context - 1) % BLOCK_SIZE) * KV_HEADS + head
        new_k = _cached(new_k, keys, key_scales, place, features, is_new, D, IS_INT8)
        weighted += _cached(new_v, values, value_scales, place, features, is_new, D, IS_INT8)  # 0 if it is another's
        score = tl.sum(q.to(tl.float32) * new_k, axis=1) * scale
        largest = _repeated(tl.where(is_new, score, float("-inf")), BLOCK_G)
        total += tl.where(is_new, 1.0, 0.0)
    else:
        q = tl.load(first_head + features, mask=is_query, other=0.0)
    q = _repeated(q, BLOCK_G)

    for start in range(begin, end, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        if IS_INT8:
            k, v = k.to(tl.float32).to(dtype), v.to(tl.float32).to(dtype)  # exact: bfloat16 has 8 bits
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if IS_INT8:
            scores *= k_scales[None, :]
        scores = tl.where((tokens < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(largest - higher)
        total = total * kept + tl.sum(weights, axis=1)
        if IS_INT8:
            weights *= v_scales[None, :]
        weighted = tl.dot(weights.to(dtype), v, weighted * kept[:, None], input_precision="ieee")
        largest = higher
        k, v, k_scales, v_scales = next_k, next_v, next_k_scales, next_v_scales
        next_k, next_v, next_k_scales, next_v_scales = _tile(
            keys, values, key_scales, value_scales, next_blocks, tokens + 2 * BLOCK_N, end, head, features,
            KV_HEADS, D, BLOCK_SIZE, IS_INT8,
        )  # fmt: skip
        next_blocks = _blocks(table, tokens + 3 * BLOCK_N, end, BLOCK_SIZE)

    num_shares = tl.cdiv(context, share)
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


def decode_attention(
    qkv: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    context_lens: Tensor,
    scratch: DecodeScratch,
    *,
    scale: float,
    cos_sin: Tensor | None,
    norms: HeadNorms | None = None,
    config: AnyConfig | None = None,
) -> Tensor:
    """Attend with one new token a row; its key and value are cached by the same launch.

    Where `cos_sin` is given, everything but `qkv` is read while the kernels in front may still run: none of the chain
    of dependent launches that this one is in may write earlier tokens' keys and values, block tables or lengths (a
    graph's replay, a copy and a synchronisation begin a new chain). Without `cos_sin` all is read after them.

    Args:
        qkv: [B, (N + 2 K) * D] from the fused projection; or, where `cos_sin` is None, rotated queries [B, N * D].
        kv: the layer's cache; written, unless `cos_sin` is None: then the new keys are in it.
        block_tables: [B, M], int32; a row's blocks up to its last token.
        context_lens: [B], int32, tokens of each row with the new one; 0 is a row of padding, of which zeros come out.
        scratch: of `decode_scratch`, for at least as many rows, heads and blocks.
        scale: of the scores.
        cos_sin: [positions, 2, D], float32, of `rotary_table`. None for rows that need each other's keys, as several
            of one sequence do: `rope_and_cache` has rotated the queries and written the keys of all.
        norms: of query and key heads, where the model has them; not read where `cos_sin` is None.
        config: for benchmarks; `scratch` must have room for it.

    Returns:
        [B, N * D].
    """
    num_rows, width = qkv.shape
    dim, num_kv_heads = kv.head_dim, kv.num_heads
    num_heads = width // dim - (0 if cos_sin is None else 2 * num_kv_heads)
    max_context = block_tables.shape[1] * kv.block_size
    config = config or _config(num_rows, num_heads, kv, max_context, qkv.element_size())
    out = torch.empty(num_rows, num_heads * dim, dtype=qkv.dtype, device=qkv.device)
    assert num_rows * config.num_splits * num_heads * dim <= scratch.partials.numel(), "scratch is too small"
    assert num_rows * num_kv_heads <= scratch.counters.numel(), "scratch is for fewer rows"
    call = DecodeCall(
        qkv, out, kv, block_tables, context_lens, scratch, scale * LOG2_E, cos_sin, norms
    )  # fmt: skip
    if isinstance(config, PipelinedConfig):
        launch_pipelined(call, config)
    elif isinstance(config, VectorConfig):
        launch_vectors(call, config)
    else:
        _launch(call, config)
    return out


def _launch(call: DecodeCall, config: DecodeConfig) -> None:
    _decode_attention[call.grid(config.num_splits)](
        *call.arguments(config.num_splits, config.min_split), **call.options(),
        BLOCK_Q=power_of_two(call.group), BLOCK_G=call.block_group, BLOCK_N=config.block_n,
        COMBINED=2 * config.num_warps, num_warps=config.num_warps, num_stages=1, maxnreg=config.max_registers,
    )  # fmt: skip
