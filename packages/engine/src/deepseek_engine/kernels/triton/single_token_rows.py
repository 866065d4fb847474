"""Rows of a weight times one token's features, inside the kernels of `single_token_kernels.py`.

INT8 weights are multiplied as they are: a feature is written in two digits to base 128 and the products of four go into
one instruction. Converting weights to floats instead takes longer than reading them (measured on an H100).

K features in.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import IS_INTERPRETED
from deepseek_engine.kernels.triton.product import fetch_to_l2

INTERPRETED = tl.constexpr(IS_INTERPRETED)


@triton.jit
def tile_of(weight, rows, is_row, K, chunk, BLOCK_K: tl.constexpr, PACK: tl.constexpr):
    """Rows of a weight [N, K / PACK], and BLOCK_K features of them."""
    at = (chunk * BLOCK_K) // PACK + tl.arange(0, BLOCK_K // PACK)
    pointers = weight + rows[:, None].to(tl.int64) * (K // PACK) + at[None, :]
    return tl.load(pointers, mask=is_row[:, None] & (at < K // PACK)[None, :], other=0)


@triton.jit
def _packed(digits):
    """Whole numbers within -128..127, four to a word."""
    quads = tl.reshape(digits.to(tl.int32) & 255, (digits.shape[0] // 4, 4))
    return tl.sum(quads << (tl.arange(0, 4) * 8)[None, :], axis=1)


@triton.jit
def operand_of(features, PACK: tl.constexpr):
    """Features as `_products` takes them: for an INT8 weight two digits each, and what the last one counts."""
    if PACK == 1:
        first, second, step = features, features, 1.0
    else:
        step = tl.maximum(tl.max(tl.abs(features)), 1e-30) * (1.0 / (127 * 128))
        whole = tl.floor(features * (1.0 / step) + 0.5)
        high = tl.floor(whole * (1.0 / 128) + 0.5)
        first, second = _packed(high), _packed(whole - high * 128)
    return first, second, step


@triton.jit
def _add_dot4(words, others, total):
    """`total` and the products of four INT8 numbers in each word with those in the other."""
    if INTERPRETED:
        for place in tl.static_range(4):
            total += ((words << (24 - 8 * place)) >> 24) * ((others << (24 - 8 * place)) >> 24)
    else:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [words, others, total], dtype=tl.int32, is_pure=True, pack=1
        )
    return total


@triton.jit
def products_of(tile, first, second, PACK: tl.constexpr):
    """float32, to be summed along the features; for INT8 in steps of the second digit."""
    if PACK == 1:
        products = tile.to(tl.float32) * first[None, :]
    else:
        nothing = tl.zeros(tile.shape, dtype=tl.int32)
        by_first = _add_dot4(tile, tl.broadcast_to(first[None, :], tile.shape), nothing)
        products = _add_dot4(tile, tl.broadcast_to(second[None, :], tile.shape), by_first * 128).to(tl.float32)
    return products


@triton.jit
def scales_and_biases(scale, bias, rows, is_row, PACK: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Of the rows of a weight; where there are none, what changes nothing."""
    scales, biases = 1.0, 0.0
    if PACK > 1:
        scales = tl.load(scale + rows, mask=is_row, other=0.0)
    if HAS_BIAS:
        biases = tl.load(bias + rows, mask=is_row, other=0.0).to(tl.float32)
    return scales, biases


@triton.jit
def fetch_ahead(address, num_bytes):
    """Have 128 lines of memory brought to the second-level cache, from the address on, and do not wait for them."""
    if not INTERPRETED:
        offsets = tl.arange(0, 128) * 128
        fetch_to_l2(address + tl.where(offsets < num_bytes, offsets, 0))
