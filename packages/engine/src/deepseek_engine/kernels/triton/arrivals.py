"""Work split over programs that the last of them to finish puts together, without a second launch."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_COUNTERS = 8192


@functools.cache
def arrival_counters(device: torch.device) -> Tensor:
    """Zeros, int32; each kernel leaves them at 0 again, so no launch has to clear them.

    Kernels that use them must follow one another: one stream, or graphs replayed on one stream. The first call must not
    fall into the capture of a graph, whose memory this would be: run a step before capturing it, as one does anyway.
    """
    return torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)


@triton.jit
def is_last_arrival(counter_ptr, NUM_PROGRAMS: tl.constexpr):
    """Whether all other programs of this counter have been here; what they stored before is then visible.

    Read what they stored with `cache_modifier=".cg"`: another multiprocessor's data is never in this one's L1.
    """
    tl.debug_barrier()  # all threads of this program have stored before one of them counts it
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    is_last = arrived == NUM_PROGRAMS - 1
    if is_last:
        tl.store(counter_ptr, 0)
    return is_last
