"""Ranks as threads of one process, over Gloo as between processes: the numbers, without the seconds of starting them.

For tests only.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage] - public by its documentation

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import ModelRunner, build_rank
from deepseek_engine.parallel.group import DistributedGroup, ParallelGroup
from deepseek_engine.parallel.peers import Alone

_LONGEST_STEP_S: Final = 60.0

Result = TypeVar("Result")


class _Thread(Alone):
    def __init__(self, store: HashStore, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def join(self, device: torch.device) -> ParallelGroup:
        """See `Peers`."""
        if self._size == 1:
            return super().join(device)
        return DistributedGroup(self._store, self._rank, self._size, device, _LONGEST_STEP_S)


def on_every_rank(config: EngineConfig, size: int, work: Callable[[ModelRunner], Result]) -> list[Result]:
    """Load a model on `size` ranks and do the same on each; what each makes of it, rank 0 first."""
    config = msgspec.structs.replace(config, tensor_parallel_size=size)
    store, num_threads = HashStore(), torch.get_num_threads()

    def run(rank: int) -> Result:
        return work(build_rank(config, _Thread(store, rank, size)))

    try:
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(run, range(size)))
    finally:
        torch.set_num_threads(num_threads)
