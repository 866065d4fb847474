"""The host's memory: how much can be had, and giving back what was freed."""

import ctypes
import os
from pathlib import Path


def available_memory_bytes() -> int:
    """Memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc.

    By itself it keeps freed blocks of less than 32 MB. A model whose layers are freed as copies of them are made would
    take twice its memory for good.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
