"""Logits to token ids.

R rows of logits, V vocabulary. A random token is the inverse of the cumulative distribution at a number that depends on
nothing but the sequence's seed and the token's position: it is the same whatever else is in the batch, and can be
replayed.
"""

from collections.abc import Sequence as Seq
from typing import Any, Final, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_engine.filters import Filters, draw_filtered, is_filtered
from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.penalties import Penalties
from deepseek_engine.sequence import SampledToken, Sequence
from deepseek_engine.token_logprobs import read_logprobs
from deepseek_engine.token_masks import apply_token_masks

MIN_TEMPERATURE: Final = 1e-3
ROWS_DRAWN_AT_ONCE: Final = 32
"""Bounds the memory of a draw: about 8 bytes a token of the vocabulary and row."""

_BLOCK: Final = 256


class Sampler:
    """Chooses a token for each row; holds the penalties' counts of the sequences that asked for them.

    Outside of tensor operations a row costs a few attribute reads; a greedy batch without adjustments is one argmax.
    """

    def __init__(self, vocab_size: int) -> None:
        self._penalties = Penalties(vocab_size)

    def sample(
        self, logits_RV: Tensor, sequences: Seq[Sequence], offsets: Seq[int] | None = None
    ) -> list[SampledToken]:
        """Choose a token for each row.

        Args:
            logits_RV: float32, one row a token to choose; changed in place.
            sequences: of the rows, in their order; one that has several rows is there several times.
            offsets: how many tokens past the end of its sequence each row stands, behind draft tokens; 0 by default.
        """
        offsets = [0] * len(sequences) if offsets is None else offsets
        reported = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        # Taken before penalties and temperature, as vLLM does.
        logprobs_RV = logits_RV[reported].log_softmax(dim=-1) if reported else None
        self._penalties.apply(logits_RV, sequences, offsets)
        apply_token_masks(logits_RV, sequences)
        token_ids_R = _argmax(logits_RV)
        random_rows = [row for row, sequence in enumerate(sequences) if not sequence.params.is_greedy]
        for start in range(0, len(random_rows), ROWS_DRAWN_AT_ONCE):
            rows = random_rows[start : start + ROWS_DRAWN_AT_ONCE]
            is_run = rows[-1] - rows[0] == len(rows) - 1
            picked = slice(rows[0], rows[-1] + 1) if is_run else rows  # a slice is not copied
            drawn = _draw_rows(logits_RV[picked], [sequences[row] for row in rows], [offsets[row] for row in rows])
            token_ids_R[picked] = drawn
        for row, sequence in enumerate(sequences):
            if sequence.thinking is not None and (forced := sequence.forced_token_id) is not None:
                assert offsets[row] == 0, "a token is forced behind drafts"
                token_ids_R[row] = forced
        chosen = cast("list[int]", token_ids_R.tolist())
        entries: dict[int, TokenLogprobs] = {}
        if logprobs_RV is not None:
            num_top = [sequences[row].params.logprobs or 0 for row in reported]
            entries = dict(zip(reported, read_logprobs(logprobs_RV, token_ids_R[reported], num_top), strict=True))
        return [SampledToken(token_id, entries.get(row)) for row, token_id in enumerate(chosen)]


def _argmax(logits_RV: Tensor) -> Tensor:
    """The first of the greatest in each row. On CPUs numpy takes an eighth of torch's time, and one thread."""
    if logits_RV.device.type != "cpu":
        return logits_RV.argmax(dim=-1)
    return torch.from_numpy(logits_RV.numpy().argmax(axis=-1))


def uniform(seeds: Seq[int], positions: Seq[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in [0, 1) from seeds below 2**64 and positions: SplitMix64 (Steele et al., 2014), entered anywhere."""
    z = np.array(seeds, dtype=np.uint64)
    z = z + (np.array(positions, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2**53


def _draw_rows(logits_RV: Tensor, sequences: list[Sequence], offsets: list[int]) -> Tensor:
    device = logits_RV.device
    params = [sequence.params for sequence in sequences]
    temperatures = torch.tensor([max(p.temperature, MIN_TEMPERATURE) for p in params], device=device)
    probs_RV = (logits_RV / temperatures[:, None]).softmax(dim=-1)
    positions = [sequence.num_output_tokens + offset for sequence, offset in zip(sequences, offsets, strict=True)]
    uniforms_R = torch.from_numpy(uniform([s.sampling_seed for s in sequences], positions)).to(device)
    filtered = [row for row, p in enumerate(params) if is_filtered(p)]
    if not filtered:
        return _draw(probs_RV, uniforms_R)
    chosen_R = torch.empty(len(sequences), dtype=torch.int64, device=device)
    limits = Filters.of([params[row] for row in filtered], device)
    chosen_R[filtered] = draw_filtered(probs_RV[filtered], limits, uniforms_R[filtered])
    plain = [row for row, p in enumerate(params) if not is_filtered(p)]
    if plain:
        chosen_R[plain] = _draw(probs_RV[plain], uniforms_R[plain])
    return chosen_R


def _draw(weights_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds the number's share of the total; never one of weight 0.

    Sums of blocks first, then the weights of the one block that holds the number: running sums of all would take longer
    than everything else in a step's sampling. All in float64, so that rare tokens keep their share.
    """
    num_rows, vocab_size = weights_RV.shape
    if vocab_size % _BLOCK:
        weights_RV = F.pad(weights_RV, (0, _BLOCK - vocab_size % _BLOCK))
    blocks = weights_RV.view(num_rows, -1, _BLOCK)
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    targets = (uniforms_R * ends[:, -1])[:, None]
    block = torch.searchsorted(ends, targets, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
    row = torch.arange(num_rows, device=weights_RV.device)
    within = blocks[row, block[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    # The block's sum and the last of its running sums may differ by a rounding; past the latter there is no token.
    last = torch.nextafter(within[:, -1:], torch.zeros_like(targets))
    place = torch.searchsorted(within, torch.minimum(targets - before, last), right=True)
    return (block * _BLOCK + place)[:, 0]
