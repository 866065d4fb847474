"""What comes before latent attention, in one launch: norm of the latents, rotations, the write to the cache.

T tokens, N heads, D qk_nope_head_dim, C kv_lora_rank, R qk_rope_head_dim.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

HEADS_PER_PROGRAM = 16


@triton.jit(do_not_specialize=["positions_ptr", "slots_ptr"])
def _latent_prepare(
    q_ptr,
    latent_ptr,
    norm_ptr,
    positions_ptr,
    slots_ptr,
    cos_sin_ptr,
    cache_ptr,
    rotated_ptr,
    eps,
    q_row_stride,
    latent_row_stride,
    cache_stride,
    rotated_row_stride,
    rotated_head_stride,
    NUM_HEADS: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    features = tl.arange(0, BLOCK_C)
    gain = tl.load(norm_ptr + features, mask=features < C, other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)

    pairs = tl.arange(0, BLOCK_PAIRS)
    is_pair = pairs < R // 2
    table_ptrs = cos_sin_ptr + tl.load(positions_ptr + row) * (2 * R) + pairs
    cos = tl.load(table_ptrs, mask=is_pair, other=0.0).to(tl.float32)
    sin = tl.load(table_ptrs + R + R // 2, mask=is_pair, other=0.0).to(tl.float32)  # the second half has its own sign
    step: tl.constexpr = 2 if INTERLEAVED else 1
    other: tl.constexpr = 1 if INTERLEAVED else R // 2

    if tl.program_id(1) == 0:
        slot = tl.load(slots_ptr + row).to(tl.int64)
        if slot >= 0:
            latent_ptrs = latent_ptr + row * latent_row_stride
            x = tl.load(latent_ptrs + features, mask=features < C, other=0.0).to(tl.float32)
            first = tl.load(latent_ptrs + C + pairs * step, mask=is_pair, other=0.0).to(tl.float32)
            second = tl.load(latent_ptrs + C + pairs * step + other, mask=is_pair, other=0.0).to(tl.float32)
            normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / C + eps) * gain
            element = cache_ptr.dtype.element_ty
            cache_ptrs = cache_ptr + slot * cache_stride
            tl.store(cache_ptrs + features, normed.to(element), mask=features < C)
            tl.store(cache_ptrs + C + pairs, (first * cos - second * sin).to(element), mask=is_pair)
            tl.store(cache_ptrs + C + R // 2 + pairs, (second * cos + first * sin).to(element), mask=is_pair)
    else:
        heads = (tl.program_id(1) - 1) * BLOCK_H + tl.arange(0, BLOCK_H)
        mask = (heads[:, None] < NUM_HEADS) & is_pair[None, :]
        q_ptrs = q_ptr + row * q_row_stride + heads[:, None] * (D + R) + D + pairs[None, :] * step
        first = tl.load(q_ptrs, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(q_ptrs + other, mask=mask, other=0.0).to(tl.float32)
        tl.debug_barrier()  # in place, one thread's results take the place of another's operands
        element = rotated_ptr.dtype.element_ty
        rotated_ptrs = rotated_ptr + row * rotated_row_stride + heads[:, None] * rotated_head_stride + pairs[None, :]
        tl.store(rotated_ptrs, (first * cos[None, :] - second * sin[None, :]).to(element), mask=mask)
        tl.store(rotated_ptrs + R // 2, (second * cos[None, :] + first * sin[None, :]).to(element), mask=mask)


def latent_prepare(
    q: Tensor,
    latent: Tensor,
    norm_weight: Tensor,
    eps: float,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    rotated: Tensor,
    *,
    interleaved: bool = True,
) -> None:
    """Norm and cache the step's latents, with their rotated keys, and rotate the queries.

    Args:
        q: [T, N, D + R], a view of the projection's output is enough: the features of a row lie together. N is 0
            where the tokens are cached and nothing attends to them.
        latent: [T, C + R], likewise; not changed.
        norm_weight: [C].
        eps: of the norm.
        positions: int32 or int64 [T]; those of padding are of the table, too.
        slot_mapping: int32 or int64 [T]; a negative slot is padding, for which nothing is cached.
        cos_sin: float32 [positions, 2, R] of `rotary_table`.
        cache: the layer's latents, [slots, C + R], written.
        rotated: [T, N, R], written. The last features of the absorbed query, or of q itself for expanded attention.
        interleaved: whether rotary pairs are neighbours. Results are in halves all the same, as `split_pairs` has them.
    """
    num_tokens, num_heads, qk_dim = q.shape
    rope_dim = rotated.shape[2]
    rank = latent.shape[1] - rope_dim
    assert q.stride(2) == latent.stride(1) == cache.stride(1) == rotated.stride(2) == 1
    assert num_heads <= 1 or q.stride(1) == qk_dim
    assert cos_sin.is_contiguous()
    assert cos_sin.shape[2] == rope_dim
    assert cache.shape[1] == latent.shape[1]
    if not num_tokens:
        return
    block_h = min(HEADS_PER_PROGRAM, triton.next_power_of_2(max(num_heads, 1)))
    is_dependent = has_dependent_launch(q.device)
    _latent_prepare[num_tokens, 1 + triton.cdiv(num_heads, block_h)](
        q,
        latent,
        norm_weight,
        positions,
        slot_mapping,
        cos_sin,
        cache,
        rotated,
        eps,
        q.stride(0),
        latent.stride(0),
        cache.stride(0),
        rotated.stride(0),
        rotated.stride(1),
        NUM_HEADS=num_heads,
        D=qk_dim - rope_dim,
        C=rank,
        R=rope_dim,
        BLOCK_C=triton.next_power_of_2(rank),
        BLOCK_PAIRS=triton.next_power_of_2(rope_dim // 2),
        BLOCK_H=block_h,
        INTERLEAVED=interleaved,
        IS_DEPENDENT=is_dependent,
        num_warps=2,
        launch_pdl=is_dependent,
    )
