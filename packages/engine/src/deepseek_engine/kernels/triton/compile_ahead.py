"""Kernels compiled many at a time, before they are needed: launches that only compile, in threads.

Compiling one takes 0.3 to 2 seconds, of which Python's lock is held for a tenth: passes, LLVM and ptxas run without it,
and so does the C compiler that makes the function through which a kernel is launched.
"""

# pyright: basic, reportAttributeAccessIssue=false
# Triton has no types.

import os
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from triton.runtime import JITFunction
from triton.runtime._async_compile import active_mode

MAX_THREADS = 32


class Compilation:
    """What Triton hands its compilations to instead of doing them at once; see its `AsyncCompileMode`.

    Attributes:
        num_kernels: compiled so far.
    """

    def __init__(self, pool: ThreadPoolExecutor, is_loaded: bool) -> None:
        self._pool, self._is_loaded = pool, is_loaded
        self._kernels: dict[str, Future[Any]] = {}
        self._finalizers: list[tuple[Future[Any], Callable[[Any], None]]] = []

    @property
    def num_kernels(self) -> int:
        """Different ones so far."""
        return len(self._kernels)

    def submit(self, key: str, compile_kernel: Callable[[], Any], finalize: Callable[[Any], None]) -> "Future[Any]":
        """Triton's call, at the first launch of a kernel."""
        future = self._kernels.get(key)
        if future is None:
            future = self._kernels[key] = self._pool.submit(self._make, compile_kernel)
        finalize(future)  # so that Triton finds it at the next launch; it takes the result of what has one
        self._finalizers.append((future, finalize))
        return future

    def finish(self) -> None:
        """Wait, and let Triton know the kernels. Raises what a compilation raised."""
        for future, finalize in self._finalizers:
            finalize(future.result())

    def _make(self, compile_kernel: Callable[[], Any]) -> Any:
        kernel = compile_kernel()
        if self._is_loaded:
            kernel._init_handles()  # noqa: SLF001 - its launcher, and its code on the device: else at its first launch
        return kernel


@contextmanager
def compile_ahead(device: torch.device) -> Generator[Compilation]:
    """Within, launches of this thread compute nothing: their kernels are compiled, and are there when it ends.

    Operations of PyTorch between the launches are computed, on whatever is in the tensors.

    Args:
        device: that the kernels are for; on one that is not CUDA nothing is loaded onto it.
    """
    launch = JITFunction.run
    is_cuda = device.type == "cuda"

    def compile_only(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        return launch(kernel, *args, **(kwargs | {"warmup": True}))

    initializer = None
    if is_cuda:  # threads begin on device 0; a device without an index is the one that this thread uses
        index = torch.cuda.current_device() if device.index is None else device.index
        initializer = partial(torch.cuda.set_device, index)
    with ThreadPoolExecutor(min(num_processors(), MAX_THREADS), "compile", initializer) as pool:
        compilation = Compilation(pool, is_cuda)
        token = active_mode.set(compilation)  # pyright: ignore[reportArgumentType] - it asks for no more than submit
        JITFunction.run = compile_only
        try:
            yield compilation
        finally:
            JITFunction.run = launch
            active_mode.reset(token)
        compilation.finish()


def num_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
