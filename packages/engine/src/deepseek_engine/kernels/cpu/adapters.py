"""Low-rank changes (LoRA) packed for the CPU kernels, and a step's rows by adapter.

O outputs, I inputs, R ranks, H hidden_size.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.kernels.cpu.library import AdapterRows, LowRank
from deepseek_engine.kernels.cpu.packed_matrix import PackedMatrix, interleaved

QKV, OUTPUT, GATE_UP, DOWN, QUERY, INDEX_QUERY, INDEX_KEY = range(7)
NUM_SITES: Final = 7
"""The linear layers of a decoder layer that adapters may change, as the kernels number them."""


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """One adapter's changes of a whole model; holds the memory that they point to."""

    changes: "ctypes.Array[LowRank]"
    tensors: tuple[PackedMatrix, ...]
    max_ranks: int


def pack_adapter(factors: Mapping[tuple[int, int], tuple[Tensor, Tensor]], num_layers: int) -> PackedAdapter:
    """Pack an adapter.

    Args:
        factors: A [R, I] and B [O, R] by layer and site, of whole fused layers; not every layer and site need be there.
        num_layers: of the model.
    """
    changes = (LowRank * (num_layers * NUM_SITES))()
    held: list[PackedMatrix] = []
    max_ranks = 0
    for (layer, site), (a_RI, b_OR) in factors.items():
        # The kernels read a row's values in pairs.
        padding = a_RI.shape[0] % 2
        a = PackedMatrix.pack(torch.nn.functional.pad(a_RI, (0, 0, 0, padding)).bfloat16())
        b_OR = torch.nn.functional.pad(b_OR, (0, padding)).bfloat16()
        b = PackedMatrix.pack(b_OR[interleaved(b_OR.shape[0])] if site == GATE_UP else b_OR)
        assert a is not None
        assert b is not None
        changes[layer * NUM_SITES + site].a, changes[layer * NUM_SITES + site].b = a.matrix, b.matrix
        held += (a, b)
        max_ranks = max(max_ranks, a_RI.shape[0] + padding)
    return PackedAdapter(changes, tuple(held), max_ranks)


class StepAdapters:
    """The adapters of one step.

    Args:
        groups: each adapter and the int64 numbers of its rows; no row is in two groups.
    """

    def __init__(self, groups: Sequence[tuple[Tensor, PackedAdapter]]) -> None:
        self._held = groups
        self.max_ranks = max(adapter.max_ranks for _, adapter in groups)
        self.num_groups = len(groups)
        self.groups = (AdapterRows * len(groups))(
            *(AdapterRows(rows.data_ptr(), rows.shape[0], adapter.changes) for rows, adapter in groups)
        )
