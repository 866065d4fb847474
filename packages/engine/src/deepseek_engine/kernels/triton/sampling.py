"""Logits to token ids on the device, without a host read: what `sampler.py` does, as two to five launches.

R rows of logits, V vocabulary. The first launch reads the logits once and leaves a few numbers a block of them; all
that follows reads those and small parts of the logits, except for rows whose filters keep very many tokens. Sums of
weights are float64: the conversions cost a few microseconds of the time that the logits take to arrive, and a float32
sum of 100,000 weights would move the boundaries between tokens by more than 1e-6.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import triton
from torch import Tensor

from deepseek_engine.kernels.sampling_rows import Needs, RowTable, SamplingConfig, Scratch
from deepseek_engine.kernels.triton.launch import has_dependent_launch
from deepseek_engine.kernels.triton.sampling_choose import choose_kernel
from deepseek_engine.kernels.triton.sampling_report import report_kernel
from deepseek_engine.kernels.triton.sampling_scan import scan_kernel
from deepseek_engine.kernels.triton.sampling_whole import whole_row_kernel
from deepseek_engine.sampling_params import MAX_LOGPROBS


@dataclass(frozen=True, slots=True)
class Warps:
    """Of each kernel's programs."""

    scan: int = 8
    choose: int = 8
    whole: int = 16
    report: int = 8


def choose_tokens(
    logits_RV: Tensor,
    rows: RowTable,
    needs: Needs,
    scratch: Scratch,
    config: SamplingConfig,
    out_R: Tensor,
    results: Tensor,
    warps: Warps | None = None,
) -> None:
    """Choose a token for each row of logits, and count it among those of its answer.

    Args:
        logits_RV: float32 or bfloat16; rows may be padded. Not changed.
        rows: what each row asks for, on the logits' device.
        needs: all that some row asks for.
        scratch: for at least R rows.
        config: the one that the scratch was made for.
        out_R: int32 or int64, the chosen ids.
        results: int32 [R or more, RESULT_WORDS], written as far as a row asks for it.
        warps: of the programs; the measured best by default.

    Raises:
        ValueError: the logits' rows are not contiguous, or there are more than the table or the scratch holds.
    """
    num_rows, vocab_size = logits_RV.shape
    if logits_RV.stride(1) != 1:
        raise ValueError(f"logits have strides {logits_RV.stride()}: the tokens of a row must lie side by side")
    if num_rows > min(rows.max_rows, scratch.adjusted.shape[0]):
        raise ValueError(f"{num_rows} rows of logits are more than the {rows.max_rows} that there is room for")
    warps = warps or Warps()
    is_dependent = has_dependent_launch(logits_RV.device)
    launch = {"launch_pdl": True} if is_dependent else {}
    num_blocks, num_groups = scratch.block_max.shape[1], scratch.group_max.shape[1]
    tiles = {
        "BLOCKS": triton.next_power_of_2(num_blocks),
        "GROUP": config.group,
        "GROUPS": triton.next_power_of_2(num_groups),
    }
    draws = {"ADJUST": needs.adjust, "IS_DEPENDENT": is_dependent}
    stride, adjusted_stride = logits_RV.stride(0), scratch.adjusted.stride(0)

    def scan(adjust: bool, draw: bool, keep_groups: bool, report: bool) -> None:
        scan_kernel[(num_blocks, num_rows)](
            logits_RV, scratch.adjusted, rows.int64, rows.int32, rows.float32,
            scratch.block_max, scratch.block_id, scratch.block_sum, scratch.group_max,
            vocab_size, stride, adjusted_stride, num_blocks, num_groups,
            BLOCK=config.block, GROUP=config.group,
            ADJUST=adjust, DRAW=draw, FILTER=keep_groups, REPORT=report, IS_DEPENDENT=is_dependent,
            num_warps=warps.scan, **launch,
        )  # fmt: skip

    scan(needs.adjust, needs.random, needs.filter, False)
    choose_kernel[(num_rows,)](
        logits_RV, scratch.adjusted, rows.int64, rows.float64, rows.int32, rows.float32,
        scratch.block_max, scratch.block_id, scratch.block_sum, scratch.group_max, scratch.groups, scratch.candidates,
        scratch.is_undecided, out_R, results, vocab_size, stride, adjusted_stride, num_blocks, num_groups,
        scratch.candidates.stride(0),
        BLOCK=config.block, CANDIDATES=config.candidates, CAPACITY=config.capacity,
        DRAW=needs.random, FILTER=needs.filter, **tiles, **draws,
        num_warps=warps.choose, **launch,
    )  # fmt: skip
    if needs.filter:
        whole_row_kernel[(num_rows,)](
            logits_RV, scratch.adjusted, rows.int64, rows.float64, rows.int32, rows.float32,
            scratch.block_max, scratch.block_sum, scratch.is_undecided, out_R, results,
            stride, adjusted_stride, num_blocks,
            VOCAB=vocab_size, BLOCKS=tiles["BLOCKS"], TILE=config.tile, **draws,
            num_warps=warps.whole, **launch,
        )  # fmt: skip
    if needs.report:
        scan(False, False, False, True)
        report_kernel[(num_rows,)](
            logits_RV, rows.int32, scratch.block_max, scratch.block_sum, scratch.group_max, scratch.groups,
            scratch.candidates, results, vocab_size, stride, num_blocks, num_groups, scratch.candidates.stride(0),
            CAPACITY=config.report_capacity, TOP=MAX_LOGPROBS, **tiles, IS_DEPENDENT=is_dependent,
            num_warps=warps.report, **launch,
        )  # fmt: skip
