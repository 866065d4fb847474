"""Writing a row in INT8 with a scale for each group of 128 channels, inside the kernel that made the row."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.quantize_groups import GROUP_SIZE, round_groups

_GROUP_SIZE: tl.constexpr = tl.constexpr(GROUP_SIZE)


@triton.jit
def store_groups(part, first_group, values_ptr, scales_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Write part of a row, float32 [BLOCK] with zeros from SIZE on, as int8 and a scale for each group.

    The part begins at `first_group`; the pointers are the row's, int8 [SIZE] and float32 [ceil(SIZE / 128)]. BLOCK is a
    power of two from 128 on.
    """
    NUM_GROUPS: tl.constexpr = BLOCK // _GROUP_SIZE
    rounded, scale = round_groups(tl.reshape(part, (NUM_GROUPS, _GROUP_SIZE)))
    group = first_group + tl.arange(0, NUM_GROUPS)
    channel = group[:, None] * _GROUP_SIZE + tl.arange(0, _GROUP_SIZE)[None, :]
    tl.store(values_ptr + channel, rounded.to(tl.int8), mask=channel < SIZE)
    tl.store(scales_ptr + group, scale, mask=group * _GROUP_SIZE < SIZE)
