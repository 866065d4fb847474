"""Rows grouped by expert, so that each expert's weights are read once a step.

T tokens, K experts a token, E experts; a row is one (token, choice) pair, so there are T * K of them.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepseek_engine.layers.linear import linear


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Rows in order of their expert.

    Attributes:
        order: [T * K], int64: row `order[i]` of the tokens' choices comes at place i.
        sizes: how many rows each expert has.
    """

    order: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, expert_ids_TK: Tensor, num_experts: int) -> "ExpertGroups":
        """Sort the choices; those of one expert stay in the tokens' order."""
        expert_of_row = expert_ids_TK.flatten()
        sizes = cast("list[int]", torch.bincount(expert_of_row, minlength=num_experts).tolist())
        return cls(expert_of_row.argsort(stable=True), sizes)

    def slices(self) -> list[tuple[int, slice]]:
        """Each expert that has rows, and where they lie."""
        found: list[tuple[int, slice]] = []
        start = 0
        for expert, size in enumerate(self.sizes):
            if size:
                found.append((expert, slice(start, start + size)))
                start += size
        return found


def expert_linear(x: Tensor, weight: Tensor, scale: Tensor | None, groups: ExpertGroups) -> Tensor:
    """Each row times its expert's matrix.

    Args:
        x: [T * K, in], in the groups' order.
        weight: [E, out, in].
        scale: float32 [E, out] of an int8 weight.
        groups: which rows belong to which expert.

    Returns:
        [T * K, out], in the groups' order.
    """
    out = x.new_empty(x.shape[0], weight.shape[1])
    for expert, rows in groups.slices():
        out[rows] = linear(x[rows], weight[expert], scale=None if scale is None else scale[expert])
    return out


def weighted_sum(rows: Tensor, weights_TK: Tensor, groups: ExpertGroups) -> Tensor:
    """Bring rows back to their tokens and add up each token's, weighted: [T * K, H] in the groups' order to [T, H].

    Reduced by reshape and sum, not index_add: the order of addition is the same in every run.
    """
    ungrouped = torch.empty_like(rows)
    ungrouped[groups.order] = rows
    return (ungrouped.view(*weights_TK.shape, -1) * weights_TK[..., None].to(rows.dtype)).sum(dim=1)
