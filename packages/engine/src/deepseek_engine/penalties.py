"""Changes to a sequence's logits before a token is chosen: penalties, bias, and tokens that may not end it yet."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import Sequence


class Penalties:
    """Applies what each sequence asked for; counts of its tokens are kept as long as the sequence lives."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._counts: WeakKeyDictionary[Sequence, _TokenCounts] = WeakKeyDictionary()

    def apply(self, logits_V: Tensor, sequence: Sequence) -> None:
        """Change one row of logits in place."""
        params = sequence.params
        if _counts_tokens(params):
            counts = self._counts.get(sequence)
            if counts is None:
                counts = self._counts[sequence] = _TokenCounts(sequence, self._vocab_size)
            counts.catch_up(sequence)
            counts.apply(logits_V, params)
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias))
            logits_V[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits_V.dtype)
        if sequence.stop_token_ids and sequence.num_output_tokens < params.min_tokens:
            logits_V[list(sequence.stop_token_ids)] = float("-inf")


def _counts_tokens(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


class _TokenCounts:
    """How often each token is in the answer, and whether it is anywhere in the sequence."""

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        self._output_counts_V = torch.zeros(vocab_size)
        self._seen_V = torch.zeros(vocab_size, dtype=torch.bool)
        self._seen_V[torch.tensor(sequence.token_ids[: sequence.num_prompt_tokens])] = True
        self._num_counted = sequence.num_prompt_tokens

    def catch_up(self, sequence: Sequence) -> None:
        for token_id in sequence.token_ids[self._num_counted :]:
            self._output_counts_V[token_id] += 1
            self._seen_V[token_id] = True
        self._num_counted = len(sequence.token_ids)

    def apply(self, logits_V: Tensor, params: SamplingParams) -> None:
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            penalised_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
            torch.where(self._seen_V, penalised_V, logits_V, out=logits_V)
        if params.frequency_penalty != 0.0:
            logits_V.sub_(self._output_counts_V, alpha=params.frequency_penalty)
        if params.presence_penalty != 0.0:
            logits_V.sub_((self._output_counts_V > 0).float(), alpha=params.presence_penalty)
