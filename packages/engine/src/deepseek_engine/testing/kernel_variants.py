"""Which variants of the Triton kernels a computation launches, found without a GPU: launched kernels are only noted.

A variant is what is compiled once: a kernel with its constants, types, and which arguments are multiples of 16. Needs a
process without TRITON_INTERPRET.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false
# Triton has no types.

from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget


class PretendedH100:
    """What Triton asks of a GPU before it compiles."""

    def get_current_target(self) -> GPUTarget:
        """For compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Any: nothing is launched."""
        return device


@contextmanager
def noted_variants() -> Generator[set[tuple[str, str]]]:
    """Within, launches compute nothing; yields the names of their kernels, each with what the variant is."""
    found: set[tuple[str, str]] = set()

    def note(*, fn: SimpleNamespace, compile: dict[str, Any], **_: object) -> bool:  # noqa: A002 - Triton's name
        found.add((fn.name, str(compile["key"])))
        return True  # it is not to be compiled

    active = triton.runtime.driver._active  # noqa: SLF001 - `reset_active` wants a GPU
    triton.runtime.driver.set_active(PretendedH100())
    hook, triton.knobs.runtime.jit_cache_hook = triton.knobs.runtime.jit_cache_hook, note
    try:
        yield found
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
        triton.runtime.driver._active = active  # noqa: SLF001
