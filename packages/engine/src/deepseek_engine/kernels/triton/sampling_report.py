"""Log-probabilities as they are reported: of each chosen token, and of the likeliest ones."""

# pyright: basic, reportAttributeAccessIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import let_next_begin, wait_for_inputs
from deepseek_engine.kernels.triton.sampling_row import (
    FLAGS,
    REPORTED,
    RESULTS,
    WORDS_32,
    collect_candidates,
    combine_blocks,
)


@triton.jit
def report_kernel(
    logits_ptr, int32_ptr, block_max_ptr, block_sum_ptr, group_max_ptr, groups_ptr, candidates_ptr,
    results_ptr, vocab_size, stride, num_blocks, num_groups, candidates_stride,
    BLOCKS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CAPACITY: tl.constexpr,
    TOP: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program a row, behind a `scan_kernel` with REPORT and the kernels that have chosen."""
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    flags = tl.load(int32_ptr + row * WORDS_32 + FLAGS)
    if (flags & REPORTED) == 0:
        return
    logits_ptr += row * stride
    results_ptr += row * RESULTS
    _, sums, greatest = combine_blocks(block_max_ptr, block_sum_ptr, row, num_blocks, 1.0, BLOCKS)
    log_total = tl.log(tl.sum(sums, axis=0).to(tl.float32))
    chosen = tl.load(logits_ptr + tl.load(results_ptr)).to(tl.float32)
    tl.store(results_ptr + 1, ((chosen - greatest) - log_total).to(tl.int32, bitcast=True))
    keys, count, _, _ = collect_candidates(
        logits_ptr, logits_ptr, group_max_ptr + row * num_groups, groups_ptr + row * num_groups,
        candidates_ptr + row * candidates_stride, flags, greatest, TOP, vocab_size, num_groups,
        GROUP, GROUPS, CAPACITY, False,
    )  # fmt: skip
    index = tl.arange(0, CAPACITY)
    is_top = (index < count) & (index < TOP)
    below = (keys >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(results_ptr + 2 + index, (keys & 0x7FFFFFFF).to(tl.int32), mask=is_top)
    tl.store(results_ptr + 2 + TOP + index, (-below - log_total).to(tl.int32, bitcast=True), mask=is_top)
