"""Loading tiles and multiplying them; the interpreter gets what it needs to do the same."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import IS_INTERPRETED

_IS_INTERPRETED = tl.constexpr(IS_INTERPRETED)


@triton.jit
def add_product(a, b, total):
    """`total + a b`, summed in float32; float32 operands as IEEE has them, never TF32. An int8 `a` is widened.

    The interpreter holds bfloat16 as bit patterns, which it would multiply as integers; in float32 the products are the
    same.
    """
    if _IS_INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a.to(b.dtype), b, total, input_precision="ieee")


@triton.jit
def load_tile(pointers, is_there, IS_WHOLE: tl.constexpr):
    """A tile with zeros where nothing is; without a mask if it is whole."""
    if IS_WHOLE:  # noqa: SIM108 - Triton compiles both sides of a ternary
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=is_there, other=0)
    return tile


@triton.jit
def fetch_to_l2(pointers):
    """Let the 128 bytes at each pointer come to L2; nothing waits for them. Not in the interpreter."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
