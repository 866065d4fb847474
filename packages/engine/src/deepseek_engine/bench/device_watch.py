"""How busy the GPU is while something runs, by NVML (`pip install nvidia-ml-py`), every 50 ms."""

import importlib
import statistics
import threading
from types import ModuleType
from typing import Any, Final, Self

import torch

PERIOD_S: Final = 0.05


class DeviceWatch:
    """Samples in a thread of its own as long as the `with` block lasts; `summary` is empty where NVML is not.

    Attributes:
        summary: `util_mean`, `util_median`, `util_min` (percent of the time in which a kernel ran), `power_w_median`,
            `mem_gib` (greatest, of the whole GPU) and the number of `samples`; filled at the end of the block.
    """

    def __init__(self, device: torch.device) -> None:
        self.summary: dict[str, float] = {}
        self._rows: list[tuple[float, float, float]] = []
        self._stop = threading.Event()
        nvml = _nvml() if device.type == "cuda" else None
        self._thread = None
        if nvml is not None:
            args = (nvml, _handle(nvml, device))
            self._thread = threading.Thread(target=self._run, args=args, name="device-watch", daemon=True)

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        busy, watts, gib = ([row[column] for row in self._rows] or [0.0] for column in range(3))
        self.summary = {
            "util_mean": round(statistics.mean(busy), 1),
            "util_median": statistics.median(busy),
            "util_min": min(busy),
            "samples": len(self._rows),
            "power_w_median": round(statistics.median(watts)),
            "mem_gib": round(max(gib), 1),
        }

    def _run(self, nvml: ModuleType, handle: Any) -> None:
        while not self._stop.wait(PERIOD_S):
            busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
            self._rows.append((busy, watts, nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30))


def _nvml() -> ModuleType | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: each package has its own error for it
        return None
    return nvml


def _handle(nvml: ModuleType, device: torch.device) -> Any:
    """NVML numbers all GPUs, CUDA those that the process may see: the UUID is the same in both."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # a slice of a GPU has another kind of UUID
        return nvml.nvmlDeviceGetHandleByIndex(device.index or 0)
