"""Top-k, top-p and min-p over many rows at once: how many of each row's likeliest tokens remain, and a draw from them.

F rows with a filter, C sorted candidates of each, V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from deepseek_engine.sampling_params import SamplingParams

CANDIDATES: Final = 256
"""Sorted candidates tried first; where they do not decide, all tokens are sorted. The same for every row: the order of
equal probabilities follows from the number of candidates, and must not change with the rest of the batch."""

ROWS_SORTED_AT_ONCE: Final = 16
"""Bounds the memory of whole sorts: 12 bytes a token and row."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Each row's limits. Source of top-p: arXiv 1904.09751; of min-p: arXiv 2407.01082."""

    top_k_F: Tensor  # int64; 0 is off
    top_p_F: Tensor  # float64; 1 is off
    min_p_F: Tensor  # float64; 0 is off

    @classmethod
    def of(cls, params: Seq[SamplingParams], device: torch.device) -> Self:
        """The limits that the rows' requests ask for."""
        return cls(
            torch.tensor([max(p.top_k, 0) for p in params], device=device),
            torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
            torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device),
        )

    def __getitem__(self, rows: Tensor) -> "Filters":
        return Filters(self.top_k_F[rows], self.top_p_F[rows], self.min_p_F[rows])


def is_filtered(params: SamplingParams) -> bool:
    """Whether a request restricts which tokens may be drawn."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def draw_filtered(probs_FV: Tensor, filters: Filters, uniforms_F: Tensor) -> Tensor:
    """Keep the top-k, of those the top-p nucleus, of those the ones above min-p; then draw.

    Args:
        probs_FV: probabilities, float32.
        filters: of the rows.
        uniforms_F: float64 in [0, 1).

    Returns:
        token ids, int64.
    """
    vocab_size = probs_FV.shape[1]
    num_candidates = min(CANDIDATES, vocab_size)
    probs_FC, ids_FC = probs_FV.topk(num_candidates)
    kept_F, is_decided_F = _count_kept(probs_FC, filters, is_whole=num_candidates == vocab_size)
    chosen_F = _draw(probs_FC, ids_FC, kept_F, uniforms_F)
    undecided = (~is_decided_F).nonzero()[:, 0]
    for start in range(0, undecided.shape[0], ROWS_SORTED_AT_ONCE):
        rows = undecided[start : start + ROWS_SORTED_AT_ONCE]
        sorted_probs, sorted_ids = probs_FV[rows].sort(descending=True)
        kept, _ = _count_kept(sorted_probs, filters[rows], is_whole=True)
        chosen_F[rows] = _draw(sorted_probs, sorted_ids, kept, uniforms_F[rows])
    return chosen_F


def _count_kept(probs_FC: Tensor, filters: Filters, *, is_whole: bool) -> tuple[Tensor, Tensor]:
    """How many leading candidates remain, at least 1; False in the second where more than C might."""
    probs = probs_FC.double()
    num_candidates = probs.shape[1]
    index_C = torch.arange(num_candidates, device=probs.device)
    cumulative = probs.cumsum(dim=-1)
    has_top_k, has_top_p = filters.top_k_F > 0, filters.top_p_F < 1.0
    kept = torch.where(has_top_k, filters.top_k_F, num_candidates).clamp_(max=num_candidates)
    decided = (has_top_k & (filters.top_k_F <= num_candidates)) | is_whole
    # The nucleus is a share of what top-k has left, so candidates that do not hold all of that decide nothing.
    mass = torch.where(has_top_k, cumulative.gather(1, kept[:, None] - 1)[:, 0], 1.0)
    may_decide = ~has_top_k | decided
    in_nucleus = (cumulative - probs < (filters.top_p_F * mass)[:, None]) & (index_C < kept[:, None])
    nucleus = torch.where(has_top_p, in_nucleus.sum(dim=-1), kept)
    decided = decided | (may_decide & (nucleus < kept))
    is_likely = (probs >= filters.min_p_F[:, None] * probs[:, :1]) & (index_C < nucleus[:, None])
    likely = is_likely.sum(dim=-1)
    decided = decided | (may_decide & (likely < nucleus))
    return likely.clamp_(min=1), decided


def _draw(probs_FC: Tensor, ids_FC: Tensor, kept_F: Tensor, uniforms_F: Tensor) -> Tensor:
    """A token of each row's first `kept` candidates, as likely as its share of them."""
    cumulative_FC = probs_FC.cumsum(dim=-1, dtype=torch.float64)
    last_F1 = kept_F[:, None] - 1
    targets_F1 = uniforms_F[:, None] * cumulative_FC.gather(1, last_F1)
    place_F1 = torch.searchsorted(cumulative_FC, targets_F1, right=True)
    return ids_FC.gather(1, torch.minimum(place_F1, last_F1))[:, 0]
