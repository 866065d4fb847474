"""Logits to token ids.

R rows of logits, V vocabulary. A random token is the inverse of the cumulative distribution at a number that depends on
nothing but the sequence's seed and the token's position: it is the same whatever else is in the batch, and can be
replayed.
"""

from collections.abc import Sequence as Seq
from typing import Final, cast

import torch
from torch import Tensor

from deepseek_engine.messages import TokenLogprobs, TopLogprob
from deepseek_engine.penalties import Penalties
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import SampledToken, Sequence

MIN_TEMPERATURE: Final = 1e-3
CANDIDATES: Final = 256
"""Sorted candidates tried first for top-k, top-p and min-p; where they do not decide, all tokens are sorted."""


class Sampler:
    """Chooses a token for each row; holds the penalties' counts of the sequences that asked for them."""

    def __init__(self, vocab_size: int) -> None:
        self._penalties = Penalties(vocab_size)

    def sample(self, logits_RV: Tensor, sequences: Seq[Sequence]) -> list[SampledToken]:
        """Choose a token for each sequence.

        Args:
            logits_RV: float32, one row a sequence; changed in place.
            sequences: in the rows' order.
        """
        logprobs = _token_logprobs_source(logits_RV, sequences)
        for row, sequence in enumerate(sequences):
            self._penalties.apply(logits_RV[row], sequence)
        token_ids = logits_RV.argmax(dim=-1)
        random_rows = [row for row, s in enumerate(sequences) if not s.params.is_greedy]
        if random_rows:
            token_ids[random_rows] = _sample_random(logits_RV[random_rows], [sequences[row] for row in random_rows])
        chosen = cast("list[int]", token_ids.tolist())
        return [
            SampledToken(token_id, _read_logprobs(logprobs.get(row), token_id, sequences[row].params))
            for row, token_id in enumerate(chosen)
        ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a seed and a position: SplitMix64 (Steele et al., 2014), entered anywhere."""
    mask = 2**64 - 1
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / 2**53


def _sample_random(logits_RV: Tensor, sequences: list[Sequence]) -> Tensor:
    temperatures = torch.tensor([max(s.params.temperature, MIN_TEMPERATURE) for s in sequences])
    probs_RV = (logits_RV / temperatures[:, None]).softmax(dim=-1)
    uniforms = torch.tensor([uniform(s.sampling_seed, s.num_output_tokens) for s in sequences], dtype=torch.float64)
    chosen = torch.empty(len(sequences), dtype=torch.int64)
    plain = [row for row, s in enumerate(sequences) if not _is_filtered(s.params)]
    if plain:
        chosen[plain] = _invert_cdf(probs_RV[plain], uniforms[plain])
    for row, sequence in enumerate(sequences):
        if _is_filtered(sequence.params):
            chosen[row] = _sample_filtered(probs_RV[row], sequence.params, uniforms[row])
    return chosen


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _sample_filtered(probs_V: Tensor, params: SamplingParams, number: Tensor) -> Tensor:
    """Keep the top-k, of those the top-p nucleus, of those the ones above min-p; then draw."""
    vocab_size = probs_V.shape[0]
    num_candidates = min(max(CANDIDATES, params.top_k), vocab_size)
    sorted_probs, sorted_ids = probs_V.topk(num_candidates)
    kept = _num_kept(sorted_probs, params)
    if kept is None:
        sorted_probs, sorted_ids = probs_V.sort(descending=True)
        kept = _num_kept(sorted_probs, params, is_whole=True) or vocab_size
    index = _invert_cdf(sorted_probs[None, :kept], number[None])[0]
    return sorted_ids[index]


def _num_kept(sorted_probs: Tensor, params: SamplingParams, *, is_whole: bool = False) -> int | None:
    """How many of the likeliest tokens remain; None when the filter reaches past the given candidates."""
    probs = sorted_probs.double()
    kept = probs.shape[0]
    decided = is_whole
    if params.top_k > 0:
        kept, decided = min(kept, params.top_k), True
    if params.top_p < 1.0:
        mass = probs[:kept].sum() if params.top_k > 0 else 1.0
        before = probs[:kept].cumsum(0) - probs[:kept]
        nucleus = int((before < params.top_p * mass).sum())
        decided = decided or nucleus < kept
        kept = nucleus
    if params.min_p > 0.0:
        likely = int((probs[:kept] >= params.min_p * probs[0]).sum())
        decided = decided or likely < kept
        kept = likely
    return max(kept, 1) if decided else None


def _invert_cdf(weights_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds the number's share of the total; never one of weight 0."""
    cumulative = weights_RV.cumsum(dim=-1, dtype=torch.float64)
    targets = (uniforms_R * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp_(max=weights_RV.shape[1] - 1)


def _token_logprobs_source(logits_RV: Tensor, sequences: Seq[Sequence]) -> dict[int, Tensor]:
    """Log-probabilities of the rows that report them, taken before penalties and temperature, as vLLM does."""
    return {
        row: logits_RV[row].log_softmax(dim=-1)
        for row, sequence in enumerate(sequences)
        if sequence.params.logprobs is not None
    }


def _read_logprobs(logprobs_V: Tensor | None, token_id: int, params: SamplingParams) -> TokenLogprobs | None:
    if logprobs_V is None:
        return None
    values, ids = logprobs_V.topk(params.logprobs or 0)
    candidates = zip(cast("list[int]", ids.tolist()), cast("list[float]", values.tolist()), strict=True)
    top = tuple(TopLogprob(token_id, value) for token_id, value in candidates)
    return TokenLogprobs(float(logprobs_V[token_id]), top)
