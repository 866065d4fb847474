"""A matrix a head, before and after absorbed attention: queries into the latents' space, and results out of it.

T tokens, N heads, D qk_nope_head_dim, C kv_lora_rank, V v_head_dim.

Up to `MAX_ROWS` tokens wait for the weights alone: a program reads a piece of one head's matrix into registers before
the kernel ahead of it is done, then multiplies it with every row. More go to cuBLAS.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# Triton compiles these functions from their source: their values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

MAX_ROWS = 4
TILE_BYTES = 16 << 10
"""Of a matrix in one program's registers: 128 threads hold 8 pieces of 16 bytes each."""


@triton.jit
def _absorb_query(
    q_ptr,
    weight_ptr,
    out_ptr,
    q_row_stride,
    q_head_stride,
    weight_head_stride,
    weight_row_stride,
    out_row_stride,
    out_head_stride,
    T: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    head = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, BLOCK_D)
    weight_ptrs = weight_ptr + head * weight_head_stride + rows[:, None] * weight_row_stride + columns[None, :]
    weight = tl.load(weight_ptrs, mask=(rows[:, None] < D) & (columns[None, :] < C), other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    for token in tl.static_range(T):
        q = tl.load(q_ptr + token * q_row_stride + head * q_head_stride + rows, mask=rows < D, other=0.0)
        out = tl.sum(weight * q.to(tl.float32)[:, None], axis=0)
        out_ptrs = out_ptr + token * out_row_stride + head * out_head_stride + columns
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=columns < C)


@triton.jit
def _expand_values(
    attended_ptr,
    weight_ptr,
    out_ptr,
    attended_row_stride,
    attended_head_stride,
    weight_head_stride,
    weight_row_stride,
    T: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    head = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_C)
    weight_ptrs = weight_ptr + head * weight_head_stride + rows[:, None] * weight_row_stride + columns[None, :]
    weight = tl.load(weight_ptrs, mask=(rows[:, None] < V) & (columns[None, :] < C), other=0.0).to(tl.float32)
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    for token in tl.static_range(T):
        attended_ptrs = attended_ptr + token * attended_row_stride + head * attended_head_stride + columns
        attended = tl.load(attended_ptrs, mask=columns < C, other=0.0)
        out = tl.sum(weight * attended.to(tl.float32)[None, :], axis=1)
        out_ptrs = out_ptr + (token * tl.num_programs(0) + head) * V + rows
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=rows < V)


def choose_tile(length: int, element_bytes: int) -> int:
    """How many vectors of `length` elements a program takes: a power of two, `TILE_BYTES` in all."""
    return max(1, TILE_BYTES // (element_bytes * triton.next_power_of_2(length)))


def absorb_query(q_nope: Tensor, key_b: Tensor, out: Tensor) -> None:
    """Each head's query times its key projection.

    Args:
        q_nope: [T, N, D]; features lie together.
        key_b: [N, D, C], a view of `kv_b` is enough; features lie together.
        out: [T, N, C], written; a view of the queries of [T, N, C + R] is enough.
    """
    num_tokens, num_heads, depth = q_nope.shape
    rank = key_b.shape[2]
    assert q_nope.stride(2) == key_b.stride(2) == out.stride(2) == 1
    if num_tokens > MAX_ROWS:
        torch.bmm(q_nope.transpose(0, 1), key_b, out=out.transpose(0, 1))
        return
    if not num_tokens:
        return
    tile = choose_tile(depth, key_b.element_size())
    is_dependent = has_dependent_launch(q_nope.device)
    _absorb_query[num_heads, triton.cdiv(rank, tile)](
        q_nope,
        key_b,
        out,
        q_nope.stride(0),
        q_nope.stride(1),
        key_b.stride(0),
        key_b.stride(1),
        out.stride(0),
        out.stride(1),
        T=num_tokens,
        D=depth,
        C=rank,
        BLOCK_D=triton.next_power_of_2(depth),
        BLOCK_C=tile,
        IS_DEPENDENT=is_dependent,
        num_warps=4,
        launch_pdl=is_dependent,
    )


def expand_values(attended: Tensor, value_b: Tensor) -> Tensor:
    """Each head's result times its value projection.

    Args:
        attended: [T, N, C]; features lie together.
        value_b: [N, V, C], a view of `kv_b` is enough; features lie together.

    Returns:
        [T, N * V].
    """
    num_tokens, num_heads, rank = attended.shape
    v_dim = value_b.shape[1]
    assert attended.stride(2) == value_b.stride(2) == 1
    out = torch.empty(num_tokens, num_heads, v_dim, dtype=attended.dtype, device=attended.device)
    if num_tokens > MAX_ROWS:
        torch.bmm(attended.transpose(0, 1), value_b.transpose(1, 2), out=out.transpose(0, 1))
    elif num_tokens:
        tile = choose_tile(rank, value_b.element_size())
        is_dependent = has_dependent_launch(attended.device)
        _expand_values[num_heads, triton.cdiv(v_dim, tile)](
            attended,
            value_b,
            out,
            attended.stride(0),
            attended.stride(1),
            value_b.stride(0),
            value_b.stride(1),
            T=num_tokens,
            C=rank,
            V=v_dim,
            BLOCK_C=triton.next_power_of_2(rank),
            BLOCK_V=tile,
            IS_DEPENDENT=is_dependent,
            num_warps=4,
            launch_pdl=is_dependent,
        )
    return out.flatten(1)
