"""Attention of chunks of prompts over their paged cache: causal, or bidirectional within a prefix (prefix-LM).

T tokens, S sequences, N query heads, K key/value heads, D head_dim, M blocks of a sequence.

A program is BLOCK_M queries of one sequence and head. The host knows T and S, not where sequences end, so sequence s
has the programs from `cu_seqlens_q[s] // BLOCK_M + s` on: always enough, and at most one too many. The last queries of
a sequence see the most keys, and are begun first: the card is not left with them at the end.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.paged_kv import PagedKV
from deepseek_engine.kernels.triton.decode_attention import LOG2_E
from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

LEAST_SEQUENCES = 256
"""What a program looks its own up among: it costs next to nothing, and fewer would be kernels of their own."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How a launch is cut.

    Attributes:
        block_m: queries of a program.
        block_n: keys of a step.
        num_warps: of a program.
        num_stages: steps of which loads are on their way, and two.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_config(max_seqlen_q: int, element_bytes: int) -> PrefillConfig:
    """By shapes alone.

    Args:
        max_seqlen_q: new tokens of a sequence at most.
        element_bytes: of an activation; 4 is multiplied without matrix units.
    """
    if element_bytes == 4:
        return PrefillConfig(block_m=32, block_n=16, num_warps=4, num_stages=4)
    if max_seqlen_q <= 16:  # several drafts: the smallest matrix product
        return PrefillConfig(block_m=16, block_n=64, num_warps=4, num_stages=6)
    if max_seqlen_q <= 64:
        return PrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=4)
    return PrefillConfig(block_m=128, block_n=64, num_warps=8, num_stages=4)


@triton.jit(
    do_not_specialize=["block_tables", "cu_seqlens_q", "context_lens", "prefix_lens", "num_sequences", "table_stride"]
)
def _prefill_attention(
    queries, out, keys, values, key_scales, value_scales, block_tables, cu_seqlens_q, context_lens, prefix_lens,
    num_sequences, table_stride, scale,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, HAS_PREFIX: tl.constexpr,
    IS_INT8: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    head, program = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    sequences = tl.arange(0, BLOCK_S)
    begins = tl.load(cu_seqlens_q + sequences, mask=sequences < num_sequences, other=0)
    first_programs = begins // BLOCK_M + sequences
    sequence = tl.sum(((first_programs <= program) & (sequences < num_sequences)).to(tl.int32), axis=0) - 1
    if sequence < 0:  # rows before the first sequence's are others'
        return
    first_row = tl.load(cu_seqlens_q + sequence)
    num_queries = tl.load(cu_seqlens_q + sequence + 1) - first_row
    first = (program - first_row // BLOCK_M - sequence) * BLOCK_M
    if first >= num_queries:
        return
    context = tl.load(context_lens + sequence)
    rows = first + tl.arange(0, BLOCK_M)
    features = tl.arange(0, BLOCK_D)
    offsets = ((first_row + rows).to(tl.int64)[:, None] * Q_HEADS + head) * D + features[None, :]
    mask = (rows < num_queries)[:, None] & (features < D)[None, :]
    q = tl.load(queries + offsets, mask=mask, other=0.0)
    positions = context - num_queries + rows
    # Query i sees keys 0 to i; within the prefix it sees the prefix.
    last_seen = positions
    earliest = context - num_queries + first
    latest = tl.minimum(earliest + BLOCK_M, context)
    every_row_sees, any_row_sees = earliest + 1, latest
    if HAS_PREFIX:
        prefix = tl.load(prefix_lens + sequence)
        last_seen = tl.where(positions < prefix, prefix - 1, positions)
        every_row_sees = tl.where(earliest < prefix, tl.minimum(prefix, context), every_row_sees)
        any_row_sees = tl.minimum(tl.maximum(any_row_sees, tl.where(earliest < prefix, prefix, 0)), context)

    table = block_tables + sequence.to(tl.int64) * table_stride
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    weighted = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    whole_end = every_row_sees // BLOCK_N * BLOCK_N
    for start in range(0, whole_end, BLOCK_N):
        largest, total, weighted = _step(
            q, start, context, last_seen, table, keys, values, key_scales, value_scales, head * KV_HEADS // Q_HEADS,
            scale, largest, total, weighted, KV_HEADS, D, BLOCK_D, BLOCK_SIZE, BLOCK_N, False, IS_INT8,
        )  # fmt: skip
    for start in range(whole_end, any_row_sees, BLOCK_N):
        largest, total, weighted = _step(
            q, start, context, last_seen, table, keys, values, key_scales, value_scales, head * KV_HEADS // Q_HEADS,
            scale, largest, total, weighted, KV_HEADS, D, BLOCK_D, BLOCK_SIZE, BLOCK_N, True, IS_INT8,
        )  # fmt: skip
    result = weighted / total[:, None]
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _step(
    q, start, context, last_seen, table, keys, values, key_scales, value_scales, head, scale, largest, total, weighted,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    """Take in BLOCK_N keys from `start` on; without a mask where every query sees all of them."""
    ahead = tl.arange(0, BLOCK_N)
    tokens = start + ahead
    is_token = tokens < context
    features = tl.arange(0, BLOCK_D)
    if BLOCK_SIZE % BLOCK_N == 0:  # they lie side by side
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        slots = block * BLOCK_SIZE + start % BLOCK_SIZE + ahead
    elif IS_MASKED:
        slots = tl.load(table + tokens // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64) * BLOCK_SIZE
        slots += tokens % BLOCK_SIZE
    else:
        slots = tl.load(table + tokens // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE
    places = slots * KV_HEADS + head
    offsets = places[:, None] * D + features[None, :]
    mask = (is_token if IS_MASKED else ahead < BLOCK_N)[:, None] & (features < D)[None, :]
    k = tl.load(keys + offsets, mask=mask, other=0)
    if IS_INT8:
        k = k.to(tl.float32).to(q.dtype)  # exact: bfloat16 has 8 bits
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if IS_INT8:
        scores *= tl.load(key_scales + places, mask=is_token, other=0.0)[None, :]
    if IS_MASKED:
        scores = tl.where(tokens[None, :] <= tl.minimum(last_seen, context - 1)[:, None], scores, float("-inf"))
    higher = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - higher[:, None])
    kept = tl.exp2(largest - higher)
    total = total * kept + tl.sum(weights, axis=1)
    if IS_INT8:
        weights *= tl.load(value_scales + places, mask=is_token, other=0.0)[None, :]
    v = tl.load(values + offsets, mask=mask, other=0)
    if IS_INT8:
        v = v.to(tl.float32).to(q.dtype)
    weighted = tl.dot(weights.to(q.dtype), v, weighted * kept[:, None], input_precision="ieee")
    return higher, total, weighted


def prefill_attention(
    queries: Tensor,
    kv: PagedKV,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    prefix_lens: Tensor | None,
    *,
    max_seqlen_q: int,
    scale: float,
    out: Tensor | None = None,
    config: PrefillConfig | None = None,
) -> Tensor:
    """Attend with a chunk of new tokens of each sequence; their keys and values are in the cache.

    Args:
        queries: [T, N, D], rotated, contiguous; a sequence's rows lie together, its last token last.
        kv: the layer's cache.
        block_tables: [S, M], int32; a sequence's blocks up to its last token.
        cu_seqlens_q: [S + 1], int32, where each sequence's rows begin; rows before the first and behind the last
            are not written.
        context_lens: [S], int32, tokens of each sequence with the new ones; at least 1 where it has rows.
        prefix_lens: [S], int32: tokens within a sequence's first so many see each other in both directions. None
            where all is causal.
        max_seqlen_q: rows of a sequence at most; decides how the launch is cut.
        scale: of the scores.
        out: [T, N, D], where to write.
        config: for benchmarks.

    Returns:
        [T, N, D].
    """
    num_tokens, num_heads, dim = queries.shape
    num_sequences = block_tables.shape[0]
    assert queries.is_contiguous()
    config = config or choose_config(max_seqlen_q, queries.element_size())
    out = torch.empty_like(queries) if out is None else out
    is_dependent = has_dependent_launch(queries.device)
    _prefill_attention[(num_heads, num_tokens // config.block_m + num_sequences)](
        queries, out, kv.keys, kv.values, *kv.scales, block_tables, cu_seqlens_q, context_lens,
        context_lens if prefix_lens is None else prefix_lens, num_sequences, block_tables.stride(0), scale * LOG2_E,
        Q_HEADS=num_heads, KV_HEADS=kv.num_heads, D=dim, BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_SIZE=kv.block_size, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_S=max(triton.next_power_of_2(num_sequences), LEAST_SEQUENCES),
        HAS_PREFIX=prefix_lens is not None, IS_INT8=kv.key_scales is not None, IS_DEPENDENT=is_dependent,
        num_warps=config.num_warps, num_stages=config.num_stages, launch_pdl=is_dependent,
    )  # fmt: skip
    return out
