"""The kernels of attention over cached latents; `latent_decode.py` launches them and says what they are for.

B rows, N heads, C kv_lora_rank, R qk_rope_head_dim.

A program takes one row, a block of heads and a span of its tokens. Scores and outputs are computed transposed, tokens
or features by heads: tiles of 64 tokens fill the matrix units' rows however few heads there are, both products read
the latents from shared memory, where they are loaded once, and no registers hold the queries.
Where a row has several spans, the programs of the row meet at a counter and each combines a share of the outputs.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import let_next_begin, wait_for_inputs


@triton.jit(do_not_specialize=["tables_ptr", "context_lens_ptr", "table_stride", "num_splits"])
def latent_decode_kernel(
    q_ptr,
    cache_ptr,
    tables_ptr,
    context_lens_ptr,
    out_ptr,
    partial_ptr,  # [B, head blocks, splits, BLOCK_H, BLOCK_C], each normalised by its own sum
    lse_ptr,  # [B, head blocks, splits, BLOCK_H], to the base 2
    counters_ptr,  # [B, head blocks]
    scale_log2,
    q_row_stride,
    q_head_stride,
    cache_stride,
    table_stride,
    num_splits,
    NUM_HEADS: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    FIRST: tl.constexpr,
    IS_LARGE: tl.constexpr,  # a cache whose offsets need 64 bits, which costs registers
    IS_SPLIT: tl.constexpr,
    MEET: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """`latent_decode.latent_decode_attention`: a program has a row, some heads and a span of the row's tokens."""
    V_PARTS: tl.constexpr = BLOCK_C // BLOCK_V
    row = tl.program_id(0).to(tl.int64)
    head_block = tl.program_id(1) // V_PARTS
    v_part = tl.program_id(1) % V_PARTS
    split = tl.program_id(2)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)

    context_len = tl.load(context_lens_ptr + row)
    span = tl.cdiv(tl.cdiv(context_len, BLOCK_N), num_splits) * BLOCK_N
    begin = split * span
    end = tl.minimum(begin + span, context_len)
    num_active = 1
    if IS_SPLIT:
        num_active = tl.maximum(tl.cdiv(context_len, tl.maximum(span, 1)), 1)
    if (begin < end) | (split == 0):  # a row without tokens is padding: its first program writes zeros
        heads = head_block * BLOCK_H + tl.arange(0, BLOCK_H)
        in_heads = heads < NUM_HEADS
        features = tl.arange(0, CHUNK_C)
        rope = tl.arange(0, BLOCK_R)
        q_head_ptrs = q_ptr + row * q_row_stride + heads[:, None] * q_head_stride
        is_query = in_heads[:, None] & (features[None, :] < C)
        q_latent = tl.load(q_head_ptrs + features[None, :], mask=is_query, other=0.0)
        q_rope = tl.load(q_head_ptrs + C + rope[None, :], mask=in_heads[:, None] & (rope[None, :] < R), other=0.0)

        v_features = v_part * BLOCK_V + tl.arange(0, BLOCK_V)
        maximum = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        acc = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
        for start in range(begin, end, BLOCK_N):
            tokens = start + tl.arange(0, BLOCK_N)
            is_token = tokens < end
            blocks = tl.load(tables_ptr + row * table_stride + tokens // BLOCK_SIZE, mask=is_token, other=0)
            if IS_LARGE:
                blocks = blocks.to(tl.int64)
            slots = blocks * BLOCK_SIZE + tokens % BLOCK_SIZE
            key_ptrs = cache_ptr + slots[:, None] * cache_stride
            is_key = is_token[:, None] & (features[None, :] < C)
            keys = tl.load(key_ptrs + features[None, :], mask=is_key, other=0.0)
            key_rope = tl.load(key_ptrs + C + rope[None, :], mask=is_token[:, None] & (rope[None, :] < R), other=0.0)
            scores = tl.dot(keys, tl.trans(q_latent), input_precision="ieee")
            scores = tl.dot(key_rope, tl.trans(q_rope), scores, input_precision="ieee")
            for first in tl.static_range(CHUNK_C, BLOCK_C, CHUNK_C):  # float32: more than registers hold at once
                part = first + features[None, :]
                q_part = tl.load(q_head_ptrs + part, mask=in_heads[:, None] & (part < C), other=0.0)
                key_part = tl.load(key_ptrs + part, mask=is_token[:, None] & (part < C), other=0.0)
                scores = tl.dot(key_part, tl.trans(q_part), scores, input_precision="ieee")
            if BLOCK_V == CHUNK_C and V_PARTS == 1:
                values = keys
            else:
                is_value = is_token[:, None] & (v_features[None, :] < C)
                values = tl.load(key_ptrs + v_features[None, :], mask=is_value, other=0.0)

            is_seen = is_token
            if FIRST > 0:
                is_seen = is_token & (tokens >= FIRST)
            scores = tl.where(is_seen[:, None], scores * scale_log2, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=0))
            rescale = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(scores - new_maximum[None, :])
            total = total * rescale + tl.sum(weights, axis=0)
            acc = acc * rescale[None, :]
            acc = tl.dot(tl.trans(values), weights.to(values.dtype), acc, input_precision="ieee")
            maximum = new_maximum

        is_empty = total == 0.0
        acc = acc / tl.where(is_empty, 1.0, total)[None, :]
        if num_active == 1:
            out_ptrs = out_ptr + (row * NUM_HEADS + heads[None, :]) * C + v_features[:, None]
            tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=in_heads[None, :] & (v_features[:, None] < C))
        else:
            places = ((row * (tl.num_programs(1) // V_PARTS) + head_block) * num_splits + split) * BLOCK_H
            places += tl.arange(0, BLOCK_H)
            if v_part == 0:
                tl.store(lse_ptr + places, maximum + tl.log2(total))
            tl.store(partial_ptr + places[None, :] * BLOCK_C + v_features[:, None], acc)
    if IS_SPLIT:
        group = row * (tl.num_programs(1) // V_PARTS) + head_block
        if (num_active > 1) & (MEET | (begin < end)):  # who had no tokens helps to combine
            _combine_when_all_are_there(
                out_ptr + row * NUM_HEADS * C,
                partial_ptr + group * num_splits * BLOCK_H * BLOCK_C,
                lse_ptr + group * num_splits * BLOCK_H,
                counters_ptr + group,
                split * V_PARTS + v_part,
                (num_splits if MEET else num_active) * V_PARTS,
                num_active,
                head_block * BLOCK_H,
                NUM_HEADS,
                C,
                BLOCK_C,
                BLOCK_H,
                MEET,
            )


@triton.jit
def _combine_when_all_are_there(
    out_ptr,
    partial_ptr,
    lse_ptr,
    counter_ptr,
    program,
    num_programs,
    num_active,
    first_head,
    NUM_HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    MEET: tl.constexpr,
):
    tl.debug_barrier()  # every thread's stores come before one thread's release of the counter
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel") + 1
    first = 0
    step = 1
    combines = arrived == num_programs
    if MEET:
        while arrived < num_programs:
            arrived = tl.atomic_add(counter_ptr, 0, sem="acquire")
        first = program
        step = num_programs
        combines = True
    if combines:
        if num_active <= 4:
            _combine(
                out_ptr, partial_ptr, lse_ptr, first, step, num_active, first_head, NUM_HEADS, C, BLOCK_C, BLOCK_H, 4
            )  # fmt: skip
        elif num_active <= 8:
            _combine(
                out_ptr, partial_ptr, lse_ptr, first, step, num_active, first_head, NUM_HEADS, C, BLOCK_C, BLOCK_H, 8
            )  # fmt: skip
        elif num_active <= 32:
            _combine(
                out_ptr, partial_ptr, lse_ptr, first, step, num_active, first_head, NUM_HEADS, C, BLOCK_C, BLOCK_H, 32
            )  # fmt: skip
        else:
            _combine(
                out_ptr, partial_ptr, lse_ptr, first, step, num_active, first_head, NUM_HEADS, C, BLOCK_C, BLOCK_H, 128
            )  # fmt: skip
        if MEET:
            combines = tl.atomic_add(counter_ptr, 1, sem="relaxed") + 1 == 2 * num_programs
        if combines:  # nobody waits any longer
            tl.store(counter_ptr, 0)


@triton.jit
def _combine(
    out_ptr,
    partial_ptr,
    lse_ptr,
    first,
    step,
    num_active,
    first_head,
    NUM_HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Weigh the spans' results of every `step`th unit: a tile of 8192 numbers, whatever the number of spans.

    A unit is some heads, or a piece of one.
    """
    COLUMNS: tl.constexpr = min(BLOCK_C, 8192 // BLOCK_S)
    PIECES: tl.constexpr = BLOCK_C // COLUMNS
    HEADS: tl.constexpr = min(BLOCK_H, 8192 // BLOCK_S // COLUMNS)
    spans = tl.arange(0, BLOCK_S)[:, None]
    is_span = spans < num_active
    for unit in range(first, BLOCK_H // HEADS * PIECES, step):
        heads = unit // PIECES * HEADS + tl.arange(0, HEADS)
        columns = unit % PIECES * COLUMNS + tl.arange(0, COLUMNS)
        places = spans * BLOCK_H + heads[None, :]
        lse = tl.load(lse_ptr + places, mask=is_span, other=float("-inf"), cache_modifier=".cg")
        part_ptrs = partial_ptr + places[:, :, None] * BLOCK_C + columns[None, None, :]
        parts = tl.load(part_ptrs, mask=is_span[:, :, None], other=0.0, cache_modifier=".cg")
        weights = tl.exp2(lse - tl.max(lse, axis=0)[None, :])
        combined = tl.sum(parts * weights[:, :, None], axis=0) / tl.sum(weights, axis=0)[:, None]
        out_ptrs = out_ptr + (first_head + heads[:, None]) * C + columns[None, :]
        is_output = (columns[None, :] < C) & (first_head + heads[:, None] < NUM_HEADS)
        tl.store(out_ptrs, combined.to(out_ptr.dtype.element_ty), mask=is_output)
