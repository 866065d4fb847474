"""The step between two layers in one launch: add the experts' rows to the residual stream, normalise, quantise.

T tokens, H hidden_size, R rows a token, G groups of 128 channels. One program a row.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.int8_groups import store_groups
from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, power_of_two, wait_for_inputs
from deepseek_engine.kernels.triton.quantize_groups import QuantizedRows

MAX_SIZE = 8192
"""A row must fit one program's registers."""

MAX_ROWS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Normed:
    """A residual stream and what the next product reads of it.

    Attributes:
        residual: [T, H], of x's type; x itself if nothing was added and no other tensor was given.
        values: the normed rows, [T, H], of the weight's type, or None.
        int8: the normed rows in INT8, or None.
        scales: float32 [T, G] of `int8`, or None.
    """

    residual: Tensor
    values: Tensor | None
    int8: Tensor | None
    scales: Tensor | None


@triton.jit
def add_rows(
    x_ptr, rows_ptr, bias, row, channel, mask,
    SIZE: tl.constexpr, ROWS_PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """A token's new residual in float32, rounded as x is stored. The rows are summed first, in their order."""
    x = tl.load(x_ptr + row * SIZE + channel, mask=mask, other=0.0)
    if ROWS_PER_TOKEN > 0:
        first = rows_ptr + row * ROWS_PER_TOKEN * SIZE + channel
        total = tl.load(first, mask=mask, other=0.0).to(tl.float32)
        for index in tl.static_range(1, ROWS_PER_TOKEN):
            total += tl.load(first + index * SIZE, mask=mask, other=0.0).to(tl.float32)
        return (x.to(tl.float32) + (total + bias)).to(x.dtype).to(tl.float32)
    return (x.to(tl.float32) + bias).to(x.dtype).to(tl.float32)


@triton.jit
def normalise(x, weight, bias, eps, mask, SIZE: tl.constexpr, IS_LAYER_NORM: tl.constexpr):
    """RMSNorm, or LayerNorm with its bias, of one float32 row that is 0 where the mask is."""
    if IS_LAYER_NORM:
        x = tl.where(mask, x - tl.sum(x, axis=0) / SIZE, 0.0)
    variance = tl.sum(x * x, axis=0) / SIZE
    return x * tl.rsqrt(variance + eps) * weight + bias


@triton.jit(do_not_specialize=["row_ids_ptr"])
def _add_rms_norm(
    x_ptr, rows_ptr, bias_ptr, weight_ptr, norm_bias_ptr, row_ids_ptr,
    residual_ptr, values_ptr, int8_ptr, scales_ptr, eps,
    SIZE: tl.constexpr, NUM_GROUPS: tl.constexpr, ROWS_PER_TOKEN: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_LAYER_NORM: tl.constexpr, IS_GATHERED: tl.constexpr, WRITES_RESIDUAL: tl.constexpr,
    WRITES_VALUES: tl.constexpr, WRITES_INT8: tl.constexpr, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    out_row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < SIZE
    weight = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    norm_bias = tl.zeros((BLOCK,), tl.float32)
    if IS_LAYER_NORM:
        norm_bias = tl.load(norm_bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    bias = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    row = out_row
    if IS_GATHERED:
        row = tl.load(row_ids_ptr + out_row).to(tl.int64)
    x = add_rows(x_ptr, rows_ptr, bias, row, channel, mask, SIZE, ROWS_PER_TOKEN)
    if WRITES_RESIDUAL:
        tl.store(residual_ptr + out_row * SIZE + channel, x.to(residual_ptr.dtype.element_ty), mask=mask)
    normed = normalise(x, weight, norm_bias, eps, mask, SIZE, IS_LAYER_NORM)
    if WRITES_VALUES:
        tl.store(values_ptr + out_row * SIZE + channel, normed.to(values_ptr.dtype.element_ty), mask=mask)
    if WRITES_INT8:
        store_groups(normed, 0, int8_ptr + out_row * SIZE, scales_ptr + out_row * NUM_GROUPS, SIZE, BLOCK)


def add_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    norm_bias: Tensor | None = None,
    row_ids: Tensor | None = None,
    residual: Tensor | None = None,
    wants_values: bool = True,
    wants_int8: bool = False,
) -> Normed:
    """Add each token's rows to the residual stream and normalise it; float32 inside.

    Args:
        x: the residual stream, [T, H], float32 or bfloat16.
        weight: of the norm, [H]; its type is that of the normed values.
        eps: added to the variance.
        rows: [T * R, H], R up to 8: the rows of token t are t * R and those after it. Summed in that order.
        bias: [H], added to every token's residual.
        norm_bias: [H] of a LayerNorm; None is RMSNorm.
        row_ids: int32 or int64 [N]: only these tokens, in this order; their residual is written nowhere unless
            `residual` [N, H] is given.
        residual: where the new residual goes; may be x, but not together with `row_ids`.
        wants_values: write the normed rows in the weight's type.
        wants_int8: write them as INT8, symmetric, with a scale for each token and group of 128 channels.

    Raises:
        ValueError: H is over 8192, or `rows` is not 1 to 8 rows a token.
    """
    size = x.shape[1]
    num_rows = x.shape[0] if row_ids is None else row_ids.shape[0]
    rows_per_token = check_rows(x, rows)
    is_changed = rows is not None or bias is not None
    if residual is None:
        residual = torch.empty_like(x) if is_changed and row_ids is None else x
    writes_residual = residual is not x or (is_changed and row_ids is None)
    values = torch.empty(num_rows, size, dtype=weight.dtype, device=x.device) if wants_values else None
    quantized = QuantizedRows.empty(num_rows, size, x.device) if wants_int8 else None
    int8, scales = (quantized.values, quantized.scales) if quantized else (None, None)
    if num_rows == 0:
        return Normed(residual, values, int8, scales)
    block = max(power_of_two(size), 128)
    is_dependent = has_dependent_launch(x.device)
    _add_rms_norm[(num_rows,)](
        x, rows, bias, weight, norm_bias, row_ids, residual, values, int8, scales, eps,
        SIZE=size, NUM_GROUPS=-(-size // 128), ROWS_PER_TOKEN=rows_per_token, HAS_BIAS=bias is not None,
        IS_LAYER_NORM=norm_bias is not None, IS_GATHERED=row_ids is not None, WRITES_RESIDUAL=writes_residual,
        WRITES_VALUES=wants_values, WRITES_INT8=wants_int8, BLOCK=block, IS_DEPENDENT=is_dependent,
        num_warps=choose_num_warps(block, num_rows), launch_pdl=is_dependent,
    )  # fmt: skip
    return Normed(residual, values, int8, scales)


def choose_num_warps(block: int, num_rows: int) -> int:
    """Few rows: many warps, so that a row's loads are all under way at once. Many: one load of 16 bytes a thread."""
    return min(max(block // 256, 1), 8) if num_rows > 512 else min(max(block // 256, 1), 16)


def check_rows(x: Tensor, rows: Tensor | None) -> int:
    """Rows a token, 0 if there are none; refuses sizes that no kernel takes."""
    num_tokens, size = x.shape
    if size > MAX_SIZE:
        raise ValueError(f"hidden size {size} exceeds {MAX_SIZE}, what one program holds; normalise with torch")
    if rows is None or num_tokens == 0:
        return 0
    per_token, rest = divmod(rows.shape[0], num_tokens)
    if rest or not 1 <= per_token <= MAX_ROWS_PER_TOKEN:
        raise ValueError(f"{rows.shape[0]} rows for {num_tokens} tokens: need 1 to {MAX_ROWS_PER_TOKEN} for each")
    return per_token
