"""LoraHost: reads adapters for a model and keeps them where it applies them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepseek_engine.lora.adapter_file import AdapterReader
from deepseek_engine.lora.appliers import Applier
from deepseek_engine.lora.targets import Target


@dataclass(frozen=True, slots=True)
class HostedAdapter:
    """A loaded adapter, as the model's applier wants it."""

    prepared: Any
    max_rank: int
    num_bytes: int


class LoraHost:
    """Adapters of one model by number; 0 is the base model.

    Args:
        targets: what may be adapted, by module name.
        applier: brings adapters to the model's layers.
        max_rank: highest rank that an adapter may have.
        dtype: that the model computes in.
    """

    def __init__(self, targets: dict[str, Target], applier: Applier, *, max_rank: int, dtype: torch.dtype) -> None:
        self._reader = AdapterReader(targets, max_rank=max_rank, dtype=dtype)
        self._applier = applier

    def read(self, path: str) -> HostedAdapter:
        """Read an adapter's folder; may run in any thread.

        Raises:
            AdapterError: it is no adapter for this model.
        """
        with torch.inference_mode():
            adapter = self._reader.read(Path(path))
            return HostedAdapter(self._applier.prepare(adapter), adapter.max_rank, adapter.num_bytes)

    def install(self, adapter_id: int, adapter: HostedAdapter) -> None:
        """Keep an adapter under a number of its own, above 0."""
        self._applier.install(adapter_id, adapter.prepared)

    def remove(self, adapter_id: int) -> None:
        """Drop an adapter that no sequence uses any more."""
        self._applier.remove(adapter_id)
