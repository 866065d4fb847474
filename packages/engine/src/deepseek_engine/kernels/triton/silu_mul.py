"""The gate of a feed-forward network, after one product has made gate and up: silu(gate) * up, quantised if asked.

T tokens, I intermediate_size, G groups of 128 channels.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.int8_groups import store_groups
from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows

BLOCK = 1024
"""Channels of a program: 8 groups, and with 4 warps 16 bytes of bfloat16 a thread."""


@triton.jit
def _silu_mul(
    gate_up_ptr, values_ptr, int8_ptr, scales_ptr,
    SIZE: tl.constexpr, NUM_GROUPS: tl.constexpr, WRITES_VALUES: tl.constexpr, WRITES_INT8: tl.constexpr,
    BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    channel = part * BLOCK + tl.arange(0, BLOCK)
    mask = channel < SIZE
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    gate_row = gate_up_ptr + row * (2 * SIZE)
    gate = tl.load(gate_row + channel, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_row + SIZE + channel, mask=mask, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    if WRITES_VALUES:
        tl.store(values_ptr + row * SIZE + channel, product.to(values_ptr.dtype.element_ty), mask=mask)
    if WRITES_INT8:
        first_group = part * (BLOCK // 128)
        store_groups(product, first_group, int8_ptr + row * SIZE, scales_ptr + row * NUM_GROUPS, SIZE, BLOCK)


def silu_mul(
    gate_up: Tensor, *, wants_values: bool = True, wants_int8: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`silu(gate) * up`, float32 inside.

    Args:
        gate_up: [T, 2 I], the gates first.
        wants_values: write the products in gate_up's type.
        wants_int8: write them as INT8, symmetric, with a scale for each token and group of 128 channels.

    Returns:
        The values, [T, I]; int8 [T, I]; its scales, float32 [T, G]. None for what was not asked for.
    """
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    values = torch.empty(num_tokens, size, dtype=gate_up.dtype, device=gate_up.device) if wants_values else None
    quantized = QuantizedRows.empty(num_tokens, size, gate_up.device) if wants_int8 else None
    int8, scales = (quantized.values, quantized.scales) if quantized else (None, None)
    if num_tokens == 0:
        return values, int8, scales
    is_dependent = has_dependent_launch(gate_up.device)
    _silu_mul[(num_tokens, -(-size // BLOCK))](
        gate_up, values, int8, scales, SIZE=size, NUM_GROUPS=-(-size // 128), WRITES_VALUES=wants_values,
        WRITES_INT8=wants_int8, BLOCK=BLOCK, IS_DEPENDENT=is_dependent, num_warps=4, launch_pdl=is_dependent,
    )  # fmt: skip
    return values, int8, scales
