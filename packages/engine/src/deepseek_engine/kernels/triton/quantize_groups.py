"""Activations in INT8 with a scale for each token and group of 128 channels.

One scale a token would cost 3 % of perplexity, as a few channels are a hundred times larger than the rest; in groups
they spoil only their neighbours.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

GROUP_SIZE = 128
"""Channels that share a scale."""


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows in INT8.

    Attributes:
        values: int8 [rows, H].
        scales: float32 [rows, ceil(H / 128)]: a value is about `values * scale` of its group. A group of zeros has
            scale 1; one with a NaN or an infinity has a NaN, and so have the products made with it.
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, num_rows: int, size: int, device: torch.device) -> "QuantizedRows":
        """Room for rows of `size` channels."""
        num_groups = triton.cdiv(size, GROUP_SIZE)
        return cls(
            torch.empty(num_rows, size, dtype=torch.int8, device=device),
            torch.empty(num_rows, num_groups, dtype=torch.float32, device=device),
        )


def quantize_groups(x: Tensor, out: QuantizedRows | None = None) -> QuantizedRows:
    """Round each group of 128 channels to INT8 by its largest absolute value.

    Args:
        x: [rows, H], bfloat16 or float32, contiguous. H need not be a multiple of 128: the last group is shorter then.
        out: where to write.
    """
    num_rows, size = x.shape
    out = QuantizedRows.empty(num_rows, size, x.device) if out is None else out
    num_groups = out.scales.shape[1]
    dependent = has_dependent_launch(x.device)
    options = {"launch_pdl": True} if dependent else {}
    block_rows = 16
    _quantize_groups_kernel[(triton.cdiv(num_rows, block_rows) * num_groups,)](
        x,
        out.values,
        out.scales,
        num_rows,
        SIZE=size,
        NUM_GROUPS=num_groups,
        GROUP_SIZE=GROUP_SIZE,
        BLOCK_ROWS=block_rows,
        IS_DEPENDENT=dependent,
        num_warps=4,
        **options,
    )
    return out


@triton.jit
def round_groups(values):
    """float32 [rows, channels of one group] to integers as float32, and the rows' scales.

    Adding 1.5 * 2^23 leaves no bits for a fraction, so it rounds to the nearest integer, ties to even.
    """
    largest = tl.max(tl.abs(values), 1)
    scale = tl.where(largest == 0.0, 1.0, largest * (1.0 / 127.0))
    scale += tl.sum(values * 0.0, 1)  # the maximum passes over a NaN
    return ((values / scale[:, None]) + 12582912.0) - 12582912.0, scale


@triton.jit(do_not_specialize=["num_rows"])
def _quantize_groups_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    num_rows,
    SIZE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    group = tl.program_id(0) % NUM_GROUPS
    row = tl.program_id(0) // NUM_GROUPS * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = group * GROUP_SIZE + tl.arange(0, GROUP_SIZE)
    offset = row.to(tl.int64)[:, None] * SIZE + channel[None, :]
    is_there = (row < num_rows)[:, None] & (channel < SIZE)[None, :]
    rounded, scale = round_groups(tl.load(x_ptr + offset, mask=is_there, other=0.0).to(tl.float32))
    tl.store(values_ptr + offset, rounded.to(tl.int8), mask=is_there)
    tl.store(scales_ptr + row.to(tl.int64) * NUM_GROUPS + group, scale, mask=row < num_rows)
