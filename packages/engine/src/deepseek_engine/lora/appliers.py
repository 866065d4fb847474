"""How adapters reach a model's linear layers: by hooks where it runs layer by layer, packed for the fused decoders.

Whatever computes the base product (plain, packed or INT8) is left alone; adapters stay in the compute dtype.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.cpu import adapters as kernels
from deepseek_engine.lora.adapter_file import Adapter
from deepseek_engine.lora.low_rank import LowRankFactors, Rows, add_low_rank
from deepseek_engine.lora.targets import Target
from deepseek_engine.sequence import Sequence

Owners = Iterable[tuple[Sequence, int]]
"""Whose the rows of a step are, in their order: a sequence and how many follow each other."""

_SITES: Final = {
    "attention.qkv": kernels.QKV,
    "attention.input": kernels.QKV,
    "attention.kv": kernels.QKV,
    "attention.q_b": kernels.QUERY,
    "attention.indexer.query": kernels.INDEX_QUERY,
    "attention.indexer.key": kernels.INDEX_KEY,
    "attention.output": kernels.OUTPUT,
    "feed_forward.gate_up": kernels.GATE_UP,
    "feed_forward.down": kernels.DOWN,
    "feed_forward.shared.gate_up": kernels.GATE_UP,
    "feed_forward.shared.down": kernels.DOWN,
}


class Applier(Protocol):
    """Holds adapters by number and applies them in steps."""

    def prepare(self, adapter: Adapter) -> Any:
        """The adapter as `install` wants it; may run in any thread."""
        ...

    def install(self, adapter_id: int, prepared: Any) -> None:
        """Keep an adapter."""
        ...

    def remove(self, adapter_id: int) -> None:
        """Drop it."""
        ...


class LayerApplier:
    """Adds changes behind each linear layer of a model that runs layer by layer.

    Args:
        targets: the model's; each of their layers gets a hook, for good.
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._installed: dict[int, Adapter] = {}
        self._step: tuple[tuple[Rows, Adapter], ...] = ()
        for name, layer in {target.layer_name: target.layer for target in targets.values()}.items():
            layer.register_forward_hook(self._hook(name))

    def prepare(self, adapter: Adapter) -> Adapter:
        """See `Applier`."""
        return adapter

    def install(self, adapter_id: int, prepared: Adapter) -> None:
        """See `Applier`."""
        self._installed[adapter_id] = prepared

    def remove(self, adapter_id: int) -> None:
        """See `Applier`."""
        del self._installed[adapter_id]

    def set_rows(self, owners: Owners) -> None:
        """Say whose the rows of the coming step are."""
        groups = _ranges_by_adapter(owners)
        self._step = tuple((_rows(ranges), self._installed[number]) for number, ranges in groups.items())

    def _hook(self, layer_name: str) -> Any:
        def add_adapters(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if self._step:
                groups = [(rows, f) for rows, adapter in self._step if (f := adapter.factors.get(layer_name))]
                add_low_rank(output, inputs[0], groups)

        return add_adapters


class FusedApplier:
    """Gives a fused decoder the changes of each step.

    Args:
        targets: the model's, as its layers were before they were packed.
        num_layers: of the model.
    """

    def __init__(self, targets: Mapping[str, Target], num_layers: int) -> None:
        self._num_outputs = {target.layer_name: sum(target.layer.out_features) for target in targets.values()}
        self._num_layers = num_layers
        self._installed: dict[int, kernels.PackedAdapter] = {}

    def prepare(self, adapter: Adapter) -> kernels.PackedAdapter:
        """See `Applier`."""
        factors = {
            _layer_and_site(name): (factors.a_RI, _whole_b(factors, self._num_outputs[name]))
            for name, factors in adapter.factors.items()
        }
        return kernels.pack_adapter(factors, self._num_layers)

    def install(self, adapter_id: int, prepared: kernels.PackedAdapter) -> None:
        """See `Applier`."""
        self._installed[adapter_id] = prepared

    def remove(self, adapter_id: int) -> None:
        """See `Applier`."""
        del self._installed[adapter_id]

    def step_adapters(self, owners: Owners) -> kernels.StepAdapters | None:
        """The adapters of a step; None if all its rows are the base model's."""
        groups = _ranges_by_adapter(owners)
        if not groups:
            return None
        return kernels.StepAdapters([(_numbers(ranges), self._installed[n]) for n, ranges in groups.items()])


def _layer_and_site(layer_name: str) -> tuple[int, int]:
    """`layers.3.attention.qkv` to 3 and the kernels' number of that layer."""
    _, index, name = layer_name.split(".", 2)
    return int(index), _SITES[name]


def _whole_b(factors: LowRankFactors, num_outputs: int) -> Tensor:
    """One B for all projections of a fused layer, which is 0 where one's ranks meet another's outputs."""
    b_OR = factors.a_RI.new_zeros(num_outputs, factors.a_RI.shape[0])
    for part in factors.parts:
        b_OR[part.columns, part.ranks] = part.b_OR
    return b_OR


def _ranges_by_adapter(owners: Owners) -> dict[int, list[range]]:
    ranges: dict[int, list[range]] = {}
    start = 0
    for sequence, num_rows in owners:
        if sequence.adapter_id:
            ranges.setdefault(sequence.adapter_id, []).append(range(start, start + num_rows))
        start += num_rows
    return ranges


def _rows(ranges: list[range]) -> Rows:
    """A slice where the ranges follow each other without a gap, else their numbers."""
    if all(before.stop == after.start for before, after in pairwise(ranges)):
        return slice(ranges[0].start, ranges[-1].stop)
    return _numbers(ranges)


def _numbers(ranges: list[range]) -> Tensor:
    return torch.tensor([row for each in ranges for row in each])
