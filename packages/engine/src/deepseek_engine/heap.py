"""Giving memory that the C library holds on to back to the system."""

import ctypes


def trim_heap() -> None:
    """Return free memory of the heap to the system, where the C library can (glibc); elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
