"""Matrix products inside kernels."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import IS_INTERPRETED

_WIDENS: tl.constexpr = tl.constexpr(IS_INTERPRETED)


@triton.jit
def add_product(a, b, total):
    """`total + a b`, summed in float32; float32 operands are multiplied as such, never as TF32.

    INT8 of either is first brought to the other's type, exactly: bfloat16 has 8 bits. The interpreter holds bfloat16 as
    16-bit integers and would multiply those: there both are widened.
    """
    if _WIDENS:
        a, b = a.to(tl.float32), b.to(tl.float32)
    elif a.dtype == tl.int8:
        a = a.to(b.dtype)
    elif b.dtype == tl.int8:
        b = b.to(a.dtype)
    return tl.dot(a, b, total, input_precision="ieee")
