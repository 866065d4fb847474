"""What the kernels' launchers share: how many multiprocessors there are, and launches that overlap.

With programmatic dependent launch a kernel may begin while the one before it ends: it loads what nobody writes (its
weights), waits for the other's results with `wait_for_inputs`, and reads those. A kernel that waits must do so before
it reads or writes anything that a kernel before it writes or reads, and every kernel of a chain must wait, since
whoever waits for one relies on that one having waited for its own.
Source: CUDA C++ programming guide, "Programmatic Dependent Launch and Synchronization".
"""

# pyright: basic, reportAttributeAccessIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import functools
import os

import torch
import triton
import triton.language as tl

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on the CPU: for tests."""

H100_MULTIPROCESSORS = 132


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; in the interpreter those of an H100, so that grids are cut as they are there."""
    if device.type != "cuda":
        return H100_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def has_dependent_launch(device: torch.device) -> bool:
    """Whether kernels may be launched with `launch_pdl=True`: from compute capability 9.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below it: what blocks are sized by."""
    return 1 << (number - 1).bit_length()


@triton.jit
def wait_for_inputs(IS_DEPENDENT: tl.constexpr):
    """Wait until the kernels before this one are done and their results are there."""
    if IS_DEPENDENT:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(IS_DEPENDENT: tl.constexpr):
    """Let the next kernel's programs start where there is room; what they need of this one they wait for."""
    if IS_DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch_to_l2(pointers, IS_DEPENDENT: tl.constexpr):
    """Have the lines at these addresses brought to L2, before `wait_for_inputs`: weights, which nobody writes.

    Loads into shared memory begin only after the wait; so the memory works while the kernel before this one ends.
    """
    if IS_DEPENDENT:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
        )
