"""Writing a row in INT8 with a scale for each group of 128 channels, inside the kernel that made the row."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP_SIZE: tl.constexpr = tl.constexpr(128)

_TO_EVEN: tl.constexpr = tl.constexpr(12582912.0)
# 1.5 * 2^23: a float32 of this size has no bits behind the point, so adding it rounds, to even on a tie.


@triton.jit
def store_groups(part, first_group, values_ptr, scales_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Write part of a row, float32 [BLOCK] with zeros from SIZE on, as int8 and a scale for each group.

    The part begins at `first_group`; the pointers are the row's, int8 [SIZE] and float32 [ceil(SIZE / 128)]. BLOCK is a
    power of two from 128 on. A group of zeros has scale 0.
    """
    NUM_GROUPS: tl.constexpr = BLOCK // GROUP_SIZE
    groups = tl.reshape(part, (NUM_GROUPS, GROUP_SIZE))
    largest = tl.max(tl.abs(groups), axis=1)
    factor = 127.0 / tl.maximum(largest, 1.0e-30)  # zeros stay zeros
    rounded = (groups * factor[:, None] + _TO_EVEN) - _TO_EVEN
    group = first_group + tl.arange(0, NUM_GROUPS)
    channel = group[:, None] * GROUP_SIZE + tl.arange(0, GROUP_SIZE)[None, :]
    tl.store(values_ptr + channel, rounded.to(tl.int8), mask=channel < SIZE)
    tl.store(scales_ptr + group, largest / 127.0, mask=group * GROUP_SIZE < SIZE)


def empty_groups(num_tokens: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a kernel writes its INT8 rows: int8 [T, size] and float32 [T, ceil(size / 128)]."""
    values = torch.empty(num_tokens, size, dtype=torch.int8, device=device)
    scales = torch.empty(num_tokens, -(-size // GROUP_SIZE.value), dtype=torch.float32, device=device)
    return values, scales
