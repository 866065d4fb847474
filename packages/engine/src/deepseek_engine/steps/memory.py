"""Which exceptions mean that memory ran out; without torch, which only the runner may import."""

from typing import Final

_MESSAGES: Final = (
    "can't allocate memory",  # torch's CPU allocator on Linux
    "not enough memory",  # the same on other systems
    "out of memory",  # CUDA's own errors, where torch passes them on as they are
    "bad_alloc",  # C++ behind a binding that knows no better
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed where this one failed."""
    if isinstance(error, MemoryError) or any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(message in text for message in _MESSAGES)
