"""ParallelGroup: what ranks that share a model exchange within a step. Two sums a layer, one concatenation a step.

Layers know nothing of it: each computes with its rank's weights as if they were all, and the decoder adds up what comes
out. R rows, N columns of one rank.
"""

import os
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage] - public by its documentation

LOOPBACK: Final = "127.0.0.1"
_GRACE_S: Final = 30.0
"""How much longer than the longest step an operation waits: where there is a watchdog, that one ends the step."""


class ParallelGroup:
    """A group of one, which has everything already; base of the others.

    Attributes:
        rank: which part of the model is held here, from 0.
        size: ranks in all.
    """

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, on every rank, the same bits on each; x may be overwritten."""
        return x

    def all_gather(self, x_RN: Tensor) -> Tensor:
        """All ranks' columns side by side, [R, size * N], on every rank."""
        return x_RN


SINGLE: Final = ParallelGroup()


class DistributedGroup(ParallelGroup):
    """Ranks over torch.distributed: NCCL between GPUs, Gloo on CPUs.

    It is made of a backend of its own and not of torch's global group, so that two engines can live in one process. All
    ranks make the same calls in the same order. What they call is put on the current stream, and CUDA graphs can record
    it.

    Args:
        store: where the ranks find each other.
        rank: of this process.
        size: ranks in all.
        device: `cpu`, or this rank's GPU.
        longest_step_s: other ranks are waited for as long and a bit longer, then an operation raises.
    """

    def __init__(self, store: Store, rank: int, size: int, device: torch.device, longest_step_s: float) -> None:
        self.rank, self.size = rank, size
        connect = _nccl if device.type == "cuda" else _gloo
        self._backend = connect(store, rank, size, timedelta(seconds=longest_step_s + _GRACE_S))

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `ParallelGroup`."""
        assert x.is_contiguous(), "it is summed in place"
        self._backend.allreduce([x]).wait()
        return x

    def all_gather(self, x_RN: Tensor) -> Tensor:
        """See `ParallelGroup`."""
        num_rows, num_columns = x_RN.shape
        if num_rows == 0:
            return x_RN.new_empty(0, self.size * num_columns)
        gathered = x_RN.new_empty(self.size * num_rows, num_columns)
        self._backend._allgather_base(gathered, x_RN.contiguous()).wait()  # noqa: SLF001 - its only name for one tensor
        return gathered.view(self.size, num_rows, num_columns).transpose(0, 1).reshape(num_rows, -1)


def serve_store(listening_fd: int, port: int, size: int) -> Store:
    """The store, in rank 0. It owns the descriptor of a socket that listens, as its own would do so on all addresses.

    Args:
        listening_fd: of a socket on `LOOPBACK`.
        port: that it listens on.
        size: ranks in all.
    """
    return TCPStore(LOOPBACK, port, size, is_master=True, wait_for_workers=False, master_listen_fd=listening_fd)


def reach_store(port: int, size: int) -> Store:
    """The store, in the other ranks; arguments as of `serve_store`."""
    return TCPStore(LOOPBACK, port, size, is_master=False)


def device_of_rank(device: torch.device, rank: int) -> torch.device:
    """Where a rank computes: each has a GPU of its own, CPUs are shared."""
    return torch.device("cuda", rank) if device.type == "cuda" else device


# torch.distributed's backends have no types, and those of the GPU are missing from builds for CPUs.
def _gloo(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    backend: Any = dist.ProcessGroupGloo
    options = backend._Options()  # noqa: SLF001
    options._timeout = timeout  # noqa: SLF001
    options._devices = [backend.create_device(hostname=LOOPBACK)]  # noqa: SLF001 - by default the host's own address
    return backend(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "=lo")  # all ranks are on this host
    backend: Any = dist.ProcessGroupNCCL
    options = backend.Options()
    options._timeout = timeout  # noqa: SLF001
    torch.cuda.set_device(rank)
    return backend(store, rank, size, options)
