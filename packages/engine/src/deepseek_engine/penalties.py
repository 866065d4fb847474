"""Changes to logits before a token is chosen: penalties, bias, and tokens that may not end an answer yet.

All rows of a step are changed together, and only at the entries that somebody asked for: those of the tokens that a
penalised sequence has met, of its bias, of its stop tokens. A vocabulary of 150,000 is not walked through for an answer
of a few hundred tokens, and no tensor operation is started per row.

R rows of logits, V vocabulary, E entries that change.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import Sequence

Ids = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class Penalties:
    """Applies what each sequence asked for; counts of its tokens are kept as long as the sequence lives."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._states: WeakKeyDictionary[Sequence, _SequenceState] = WeakKeyDictionary()

    def apply(self, logits_RV: Tensor, sequences: Seq[Sequence], offsets: Seq[int]) -> None:
        """Change logits in place: penalties first, then bias, then stop tokens before `min_tokens`.

        Args:
            logits_RV: float32, contiguous.
            sequences: of the rows.
            offsets: how many tokens past the end of its sequence a row stands; 0 for sequences with penalties.
        """
        rows = [row for row, sequence in enumerate(sequences) if sequence.adjusts_logits]
        if not rows:
            return
        changes = _Changes(self._vocab_size)
        for row in rows:
            sequence = sequences[row]
            state = self._states.get(sequence)
            if state is None:
                state = self._states[sequence] = _SequenceState(sequence)
            changes.add(row, state, sequence, offsets[row])
        changes.apply(logits_RV.view(-1))


class _SequenceState:
    """One sequence's part, as arrays that a step only has to join with others."""

    def __init__(self, sequence: Sequence) -> None:
        params = sequence.params
        bias = params.logit_bias or {}
        self.counts = _TokenCounts(sequence) if params.penalises_tokens else None
        self.bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self.bias = np.fromiter(bias.values(), np.float32, len(bias))
        self.stop_ids = np.fromiter(sequence.stop_token_ids, np.int64, len(sequence.stop_token_ids))


class _TokenCounts:
    """How often each token that the sequence has met is in its answer: 0 for those of the prompt only."""

    def __init__(self, sequence: Sequence) -> None:
        # Only the repetition penalty asks about tokens of the prompt.
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        ids = list(dict.fromkeys(prompt)) if sequence.params.repetition_penalty != 1.0 else []
        self._place_of = {token_id: place for place, token_id in enumerate(ids)}
        self._ids = np.array(ids, dtype=np.int64)
        self._counts = np.zeros(len(ids), dtype=np.float32)
        self._num_counted = sequence.num_prompt_tokens

    def read(self, sequence: Sequence) -> tuple[Ids, Floats]:
        """Token ids and counts, up to the sequence's last token."""
        for token_id in sequence.token_ids[self._num_counted :]:
            self._count(token_id)
        self._num_counted = len(sequence.token_ids)
        size = len(self._place_of)
        return self._ids[:size], self._counts[:size]

    def _count(self, token_id: int) -> None:
        place = self._place_of.setdefault(token_id, len(self._place_of))
        if place == len(self._ids):
            room = max(64, place)
            self._ids = np.concatenate((self._ids, np.zeros(room, dtype=np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(room, dtype=np.float32)))
        self._ids[place] = token_id
        self._counts[place] += 1


@dataclass(slots=True)
class _Changes:
    """One step's entries, as positions in the flattened logits with what is to be done there."""

    vocab_size: int
    counted: list[Ids] = field(default_factory=list[Ids])
    counts: list[Floats] = field(default_factory=list[Floats])
    params: list[SamplingParams] = field(default_factory=list[SamplingParams])
    biased: list[Ids] = field(default_factory=list[Ids])
    bias: list[Floats] = field(default_factory=list[Floats])
    forbidden: list[Ids] = field(default_factory=list[Ids])

    def add(self, row: int, state: _SequenceState, sequence: Sequence, offset: int) -> None:
        start = row * self.vocab_size
        if state.counts is not None:
            assert offset == 0, "draft tokens are not in the counts"
            ids, counts = state.counts.read(sequence)
            self.counted.append(ids + start)
            self.counts.append(counts)
            self.params.append(sequence.params)
        if state.bias_ids.size:
            self.biased.append(state.bias_ids + start)
            self.bias.append(state.bias)
        # Where a grammar allows nothing but the end, the end comes: its mask sees to `min_tokens`.
        if sequence.grammar is None and sequence.num_output_tokens + offset < sequence.params.min_tokens:
            self.forbidden.append(state.stop_ids + start)

    def apply(self, logits: Tensor) -> None:
        if self.counted:
            at, values = self._penalised(logits)
            logits[at] = values
        if self.biased:
            at = _tensor(self.biased, logits)
            logits[at] = logits[at] + _tensor(self.bias, logits)
        if self.forbidden:
            logits[_tensor(self.forbidden, logits)] = float("-inf")

    def _penalised(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [ids.size for ids in self.counted]

        def per_entry(name: str) -> Tensor:
            values = np.array([getattr(params, name) for params in self.params], dtype=np.float32)
            return torch.from_numpy(np.repeat(values, sizes)).to(logits.device)

        at_E, counts_E = _tensor(self.counted, logits), _tensor(self.counts, logits)
        repetition_E = per_entry("repetition_penalty")
        values_E = logits[at_E]
        values_E = torch.where(values_E > 0, values_E / repetition_E, values_E * repetition_E)
        values_E -= per_entry("frequency_penalty") * counts_E
        values_E -= per_entry("presence_penalty") * (counts_E > 0)
        return at_E, values_E


def _tensor(parts: Seq[np.ndarray[Any, Any]], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(like.device)
