"""Zeros in the rows behind the last that anybody computes, where only the device knows which those are."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs

ROWS_A_PROGRAM = 64


@triton.jit(do_not_specialize=["num_rows"])
def _clear_rows_kernel(
    rows, first, num_rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, IS_DEPENDENT: tl.constexpr
):
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    begin = tl.program_id(0) * ROWS
    end = tl.minimum(begin + ROWS, num_rows)
    features = tl.arange(0, BLOCK)
    for row in range(tl.maximum(begin, tl.load(first)), end):
        tl.store(rows + row * WIDTH + features, tl.zeros((BLOCK,), rows.dtype.element_ty), mask=features < WIDTH)


def clear_rows(rows: Tensor, first: Tensor) -> None:
    """Write zeros from a row on.

    Args:
        rows: [T, ...], contiguous; written.
        first: int32 [1], on the device.
    """
    num_rows, width = rows.shape[0], rows[0].numel()
    is_dependent = has_dependent_launch(rows.device)
    _clear_rows_kernel[(triton.cdiv(num_rows, ROWS_A_PROGRAM),)](
        rows, first, num_rows, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=ROWS_A_PROGRAM,
        IS_DEPENDENT=is_dependent, num_warps=4, launch_pdl=is_dependent,
    )  # fmt: skip
