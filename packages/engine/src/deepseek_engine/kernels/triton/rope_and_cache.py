"""Norm and rotate query and key heads, and write keys and values to the cache: one launch behind the projection.

T tokens, N query heads, K key/value heads, D head_dim. A program is a few heads of one token.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

MAX_BLOCK_ELEMENTS = 1024
"""Features of one program: 8 a thread, which are 16 bytes in bfloat16."""


@triton.jit
def angles_of(cos_sin, features, D: tl.constexpr):
    """Cosines and sines of one row of the table."""
    cos = tl.load(cos_sin + features, mask=features < D, other=0.0)
    return cos, tl.load(cos_sin + D + features, mask=features < D, other=0.0)


@triton.jit
def gains_of(norm, features, D: tl.constexpr, HAS_NORM: tl.constexpr):
    """A head norm's weights, and those of the features that each is rotated with."""
    gain, swapped_gain = 1.0, 1.0
    if HAS_NORM:
        gain = tl.load(norm + features, mask=features < D, other=0.0).to(tl.float32)
        swapped_gain = tl.load(norm + (features + D // 2) % D, mask=features < D, other=0.0).to(tl.float32)
    return gain, swapped_gain


@triton.jit
def rotated(heads, features, mask, cos, sin, gain, swapped_gain, eps, D: tl.constexpr, HAS_NORM: tl.constexpr):
    """Heads, normed if they are to be, and rotated; float32.

    `heads` points to the beginning of each, [heads, 1]; `features` is [1, features], `mask` of both.
    """
    x = tl.load(heads + features, mask=mask, other=0.0).to(tl.float32)
    swapped = tl.load(heads + (features + D // 2) % D, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)[:, None]
        x *= factor * gain
        swapped *= factor * swapped_gain
    return x * cos + swapped * sin


@triton.jit
def quantised(x):
    """[rows, features], float32, to whole numbers within -127..127, still float32, and each row's scale."""
    largest = tl.max(tl.abs(x), axis=1)
    to_int = 127.0 / tl.maximum(largest, 1e-30)
    # Adding 1.5 * 2**23 leaves no bits for a fraction: the sum is rounded to the nearest, to even on a tie.
    return (x * to_int[:, None] + 12582912.0) - 12582912.0, largest / 127.0


@triton.jit(do_not_specialize=["positions", "slot_mapping"])
def _rope_and_cache(
    qkv, positions, slot_mapping, cos_sin, q_norm, k_norm, queries, rotated_keys,
    keys, values, key_scales, value_scales, qkv_stride, eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr, IS_INT8: tl.constexpr, KEEPS_KEYS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    Q_BLOCKS: tl.constexpr = (Q_HEADS + BLOCK_H - 1) // BLOCK_H
    KV_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    block, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    features = tl.arange(0, BLOCK_D)[None, :]
    row = qkv + token * qkv_stride
    cos, sin = angles_of(cos_sin + tl.load(positions + token).to(tl.int64) * (2 * D), features, D)
    if block < Q_BLOCKS:
        heads = block * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
        mask = (heads < Q_HEADS) & (features < D)
        gain, swapped_gain = gains_of(q_norm, features, D, HAS_NORM)
        x = rotated(row + heads * D, features, mask, cos, sin, gain, swapped_gain, eps, D, HAS_NORM)
        tl.store(queries + (token * Q_HEADS + heads) * D + features, x.to(queries.dtype.element_ty), mask=mask)
    else:
        slot = tl.load(slot_mapping + token).to(tl.int64)
        if slot >= 0:
            heads = (block - Q_BLOCKS) % KV_BLOCKS * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
            mask = (heads < KV_HEADS) & (features < D)
            places = slot * KV_HEADS + heads
            if block < Q_BLOCKS + KV_BLOCKS:
                gain, swapped_gain = gains_of(k_norm, features, D, HAS_NORM)
                new = row + (Q_HEADS + heads) * D
                x = rotated(new, features, mask, cos, sin, gain, swapped_gain, eps, D, HAS_NORM)
                x = x.to(qkv.dtype.element_ty)
                _write(keys, key_scales, places, x, features, mask, D, IS_INT8)
                if KEEPS_KEYS:
                    tl.store(rotated_keys + (token * KV_HEADS + heads) * D + features, x, mask=mask)
            else:
                x = tl.load(row + (Q_HEADS + KV_HEADS + heads) * D + features, mask=mask, other=0.0)
                _write(values, value_scales, places, x, features, mask, D, IS_INT8)


@triton.jit
def _write(cache, scales, places, x, features, mask, D: tl.constexpr, IS_INT8: tl.constexpr):
    if IS_INT8:
        whole, scale = quantised(x.to(tl.float32))
        tl.store(cache + places * D + features, whole.to(tl.int8), mask=mask)
        tl.store(scales + places, scale[:, None], mask=tl.max(mask.to(tl.int32), axis=1)[:, None] > 0)
    else:
        tl.store(cache + places * D + features, x, mask=mask)


def rope_and_cache(
    qkv: Tensor,
    kv: PagedKV,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    norms: HeadNorms | None = None,
    rotated_keys: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, and write the new keys and values to the cache.

    Args:
        qkv: [T, (N + 2 K) * D] from the fused projection; rows may lie apart.
        kv: the layer's cache; written.
        positions: [T], int32, of each token in its sequence.
        slot_mapping: [T], int32 or int64; where a token is cached, negative for a row of padding.
        cos_sin: [positions, 2, D], float32, of `rotary_table`.
        norms: of query and key heads, where the model has them.
        rotated_keys: [T, K, D], contiguous, of the activations' dtype: takes the keys as well, side by side, for
            attention that does not read pages. Rows of padding are not written.

    Returns:
        [T, N, D], queries.
    """
    num_tokens, width = qkv.shape
    dim, num_kv_heads = kv.head_dim, kv.num_heads
    num_heads = width // dim - 2 * num_kv_heads
    queries = torch.empty(num_tokens, num_heads, dim, dtype=qkv.dtype, device=qkv.device)
    is_dependent = has_dependent_launch(qkv.device)
    block_dim = triton.next_power_of_2(dim)
    block_heads = max(1, min(MAX_BLOCK_ELEMENTS // block_dim, triton.next_power_of_2(num_kv_heads)))
    num_blocks = -(-num_heads // block_heads) - 2 * (-num_kv_heads // block_heads)
    _rope_and_cache[(num_blocks, num_tokens)](
        qkv, positions, slot_mapping, cos_sin,
        *((qkv, qkv) if norms is None else (norms.query, norms.key)), queries,
        queries if rotated_keys is None else rotated_keys, kv.keys, kv.values, *kv.scales,
        qkv.stride(0), 0.0 if norms is None else norms.eps,
        Q_HEADS=num_heads, KV_HEADS=num_kv_heads, D=dim, BLOCK_H=block_heads, BLOCK_D=block_dim,
        HAS_NORM=norms is not None, IS_INT8=kv.key_scales is not None,
        KEEPS_KEYS=rotated_keys is not None, IS_DEPENDENT=is_dependent,
        num_warps=max(1, block_heads * block_dim // 256), launch_pdl=is_dependent,
    )  # fmt: skip
    return queries
