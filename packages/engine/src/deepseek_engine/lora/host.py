"""LoraHost: the adapters that a model holds, and their application within a step.

A hook on each adaptable linear layer adds what the step's adapters change. Layers are called as they always were, and
whatever computes the base product (plain, packed or INT8) is left alone; adapters stay in the compute dtype.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_engine.lora.adapter_file import Adapter, AdapterReader
from deepseek_engine.lora.low_rank import Rows, add_low_rank
from deepseek_engine.lora.targets import adaptable_projections
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sequence import Sequence


class LoraHost:
    """Adapters of one model by number; 0 is the base model.

    Args:
        model: gets a hook on each adaptable layer, for good.
        max_rank: highest rank that an adapter may have.
        dtype: that the model computes in.
    """

    def __init__(self, model: Transformer, *, max_rank: int, dtype: torch.dtype) -> None:
        targets = adaptable_projections(model)
        self._reader = AdapterReader(targets, max_rank=max_rank, dtype=dtype)
        self._installed: dict[int, Adapter] = {}
        self._step: tuple[tuple[Rows, Adapter], ...] = ()
        for name, layer in {target.layer_name: target.layer for target in targets.values()}.items():
            layer.register_forward_hook(self._hook(name))

    def read(self, path: str) -> Adapter:
        """Read an adapter's folder; may run in any thread.

        Raises:
            AdapterError: it is no adapter for this model.
        """
        return self._reader.read(Path(path))

    def install(self, adapter_id: int, adapter: Adapter) -> None:
        """Keep an adapter under a number of its own, above 0."""
        assert adapter_id > 0
        assert adapter_id not in self._installed
        self._installed[adapter_id] = adapter

    def remove(self, adapter_id: int) -> None:
        """Drop an adapter that no sequence uses any more."""
        del self._installed[adapter_id]

    def set_rows(self, owners: Iterable[tuple[Sequence, int]]) -> None:
        """Say whose the rows of the coming step are, in their order: a sequence and how many follow each other."""
        ranges: dict[int, list[range]] = {}
        start = 0
        for sequence, num_rows in owners:
            if sequence.adapter_id:
                ranges.setdefault(sequence.adapter_id, []).append(range(start, start + num_rows))
            start += num_rows
        self._step = tuple((_rows(of_adapter), self._installed[number]) for number, of_adapter in ranges.items())

    def _hook(self, layer_name: str) -> Any:
        def add_adapters(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if self._step:
                groups = [(rows, f) for rows, adapter in self._step if (f := adapter.factors.get(layer_name))]
                add_low_rank(output, inputs[0], groups)

        return add_adapters


def _rows(ranges: list[range]) -> Rows:
    """A slice where the ranges follow each other without a gap, else their numbers."""
    if all(before.stop == after.start for before, after in pairwise(ranges)):
        return slice(ranges[0].start, ranges[-1].stop)
    return torch.tensor([row for each in ranges for row in each])
