"""INT8 x INT8 linear layers for many tokens: scales of token groups inside the sum, those of channels at its end.

T tokens, N channels out, K channels in, in groups of 128.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.product import load_tile
from deepseek_engine.kernels.triton.quantize_groups import GROUP_SIZE

_GROUP_SIZE: tl.constexpr = tl.constexpr(GROUP_SIZE)


@dataclass(frozen=True, slots=True)
class Int8Config:
    """Tokens of a program; its channels are `half_n`, or twice that; and how it is run."""

    block_t: int
    half_n: int
    num_halves: int
    num_warps: int
    num_stages: int
    group_t: int = 8


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_w8a8(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, num_tokens, N,
    K: tl.constexpr, NUM_GROUPS: tl.constexpr, IS_WHOLE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr,
    HALF_N: tl.constexpr, NUM_HALVES: tl.constexpr, GROUP_T: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    # Programs that run together cover a square of the output, whose operands L2 then holds.
    program = tl.program_id(0)
    blocks_t, blocks_n = tl.cdiv(num_tokens, BLOCK_T), tl.cdiv(N, NUM_HALVES * HALF_N)
    first_t = program // (GROUP_T * blocks_n) * GROUP_T
    width = tl.minimum(blocks_t - first_t, GROUP_T)
    in_group = program % (GROUP_T * blocks_n)
    token = (first_t + in_group % width) * BLOCK_T + tl.arange(0, BLOCK_T)
    first = in_group // width * (NUM_HALVES * HALF_N) + tl.arange(0, HALF_N)
    second = first + HALF_N
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    k = tl.arange(0, _GROUP_SIZE)
    # Rows past the end repeat the last one: a load without a mask is a plain copy of 16 bytes.
    at_token = tl.minimum(token, num_tokens - 1).to(tl.int64)
    x_tiles = x_ptr + at_token[:, None] * K + k[None, :]
    first_tiles = weight_ptr + tl.minimum(first, N - 1).to(tl.int64)[None, :] * K + k[:, None]
    second_tiles = weight_ptr + tl.minimum(second, N - 1).to(tl.int64)[None, :] * K + k[:, None]
    x_scales = x_scale_ptr + at_token * NUM_GROUPS
    total = tl.zeros((BLOCK_T, HALF_N), tl.float32)
    second_total = tl.zeros((BLOCK_T, HALF_N), tl.float32)
    for group in range(NUM_GROUPS):
        x_scale = tl.load(x_scales + group)[:, None]
        at = group * _GROUP_SIZE
        # A sum over 128 channels fits int32 many times over; each half is scaled while the other is multiplied.
        x = load_tile(x_tiles + at, (k < K - at)[None, :], IS_WHOLE)
        weight = load_tile(first_tiles + at, (k < K - at)[:, None], IS_WHOLE)
        total += tl.dot(x, weight, out_dtype=tl.int32).to(tl.float32) * x_scale
        if NUM_HALVES == 2:
            second_weight = load_tile(second_tiles + at, (k < K - at)[:, None], IS_WHOLE)
            second_total += tl.dot(x, second_weight, out_dtype=tl.int32).to(tl.float32) * x_scale
    _store(total, token, first, scale_ptr, bias_ptr, out_ptr, num_tokens, N, HAS_BIAS)
    if NUM_HALVES == 2:
        _store(second_total, token, second, scale_ptr, bias_ptr, out_ptr, num_tokens, N, HAS_BIAS)


@triton.jit
def _store(total, token, channel, scale_ptr, bias_ptr, out_ptr, num_tokens, N, HAS_BIAS: tl.constexpr):
    is_channel = channel < N
    out = total * tl.load(scale_ptr + channel, mask=is_channel, other=0.0)[None, :]
    if HAS_BIAS:
        out += tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    mask = (token < num_tokens)[:, None] & is_channel[None, :]
    tl.store(out_ptr + token.to(tl.int64)[:, None] * N + channel[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


def linear_w8a8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    config: Int8Config | None = None,
) -> Tensor:
    """`x W^T + b` with both factors in INT8: int32 sums within a group, float32 over groups.

    Args:
        x: int8 [T, K]: `x * x_scale` of a token's group is the activation.
        x_scale: float32 [T, ceil(K / 128)].
        weight: int8 [N, K]; its rows are read 16 bytes at a time if K is a multiple of 16.
        scale: float32 [N].
        bias: [N].
        dtype: of the result.
        config: of the kernel, to measure others than `choose_config`'s.

    Returns:
        [T, N].
    """
    num_tokens, size = x.shape
    num_rows = weight.shape[0]
    out = torch.empty(num_tokens, num_rows, dtype=dtype, device=x.device)
    if num_tokens == 0:
        return out
    if config is None:
        config = choose_config(num_tokens, num_rows)
    is_dependent = has_dependent_launch(x.device)
    num_programs = -(-num_tokens // config.block_t) * -(-num_rows // (config.half_n * config.num_halves))
    _linear_w8a8[(num_programs,)](
        x, x_scale, weight, scale, bias, out, num_tokens, num_rows, K=size, NUM_GROUPS=x_scale.shape[1],
        IS_WHOLE=size % GROUP_SIZE == 0, HAS_BIAS=bias is not None,
        BLOCK_T=config.block_t, HALF_N=config.half_n, NUM_HALVES=config.num_halves, GROUP_T=config.group_t,
        IS_DEPENDENT=is_dependent, num_warps=config.num_warps, num_stages=config.num_stages, launch_pdl=is_dependent,
    )  # fmt: skip
    return out


def choose_config(num_tokens: int, num_rows: int) -> Int8Config:
    """The largest tile that still gives most multiprocessors one: L2 feeds each only so many bytes a multiplication."""
    if num_tokens <= 64:
        return Int8Config(64, 64, 1, 4, 4)
    if num_tokens <= 512 or num_rows < 1024:
        return Int8Config(64, 128, 1, 4, 4)
    return Int8Config(128, 128, 2, 8, 4)
