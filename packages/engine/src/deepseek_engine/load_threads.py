"""Threads for loading: each takes a whole tensor or layer.

torch's own threads share each operation among them and meet at its end. Loading is thousands of short operations, and
on a machine that is busy with something else every meeting waits for the slowest: it took 100 times as long.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import torch

MAX_LOAD_THREADS: Final = 8
"""Memory and disk are the limit from there on."""


@contextmanager
def load_threads() -> Generator[tuple[ThreadPoolExecutor, int]]:
    """A pool and its number of threads, torch's at most, where each operation of torch runs on the thread that asks."""
    num_torch_threads = torch.get_num_threads()
    num_threads = min(num_torch_threads, MAX_LOAD_THREADS)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="load") as pool:
            yield pool, num_threads
    finally:
        torch.set_num_threads(num_torch_threads)
