"""Hidden states of prompt rows to log-probabilities and embeddings, in bounded memory.

A prompt of 8,192 tokens against a vocabulary of 129,280 would be 4 GB of logits, and log-softmax as much again; servers
have died of that. Here a few rows at a time become logits and are gone again.

R rows that a step yields, of which P are prompt rows; H hidden_size, V vocab_size.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.sequence import ScheduledSequence
from deepseek_engine.token_logprobs import read_logprobs

MAX_ROWS: Final = 256
MAX_LOGITS: Final = 2**24
"""Rows of logits that exist at once: at most so many, and at most so many numbers (64 MB) where V allows it."""


class PromptReader:
    """Reads prompts as their chunks are computed.

    Args:
        to_logits: [R, H] to float32 [R, V].
        vocab_size: V.
    """

    def __init__(self, to_logits: Callable[[Tensor], Tensor], vocab_size: int) -> None:
        self._to_logits = to_logits
        self._max_rows = max(1, min(MAX_ROWS, MAX_LOGITS // vocab_size))
        self._hidden_PH: Tensor | None = None

    def forget(self) -> None:
        """Drop what `split` put aside."""
        self._hidden_PH = None

    def split(self, hidden_RH: Tensor, batch: Seq[ScheduledSequence]) -> Tensor:
        """Put the prompt rows aside for `read`; returns the others, whose tokens are sampled."""
        if not any(scheduled.read_positions for scheduled in batch):
            return hidden_RH
        is_read: list[bool] = []
        for scheduled in batch:
            is_read += [True] * len(scheduled.read_positions) + [False] * scheduled.num_sampled_rows
        read_R = torch.tensor(is_read, device=hidden_RH.device)
        self._hidden_PH = hidden_RH[read_R]
        return hidden_RH[~read_R]

    def read(self, batch: Seq[ScheduledSequence]) -> list[PromptPart]:
        """What the step that was split last says of each prompt that it was to read, in the batch's order."""
        hidden_PH, self._hidden_PH = self._hidden_PH, None
        assert hidden_PH is not None, "nothing to read"
        parts: list[PromptPart] = []
        start = 0
        for scheduled in batch:
            if positions := scheduled.read_positions:
                parts.append(self._read_one(hidden_PH[start : start + len(positions)], scheduled))
                start += len(positions)
        return parts

    def _read_one(self, hidden_PH: Tensor, scheduled: ScheduledSequence) -> PromptPart:
        reading, positions = scheduled.sequence.reading, scheduled.read_positions
        assert reading is not None
        if reading.purpose == "logprobs":
            next_ids = scheduled.sequence.token_ids[positions.start + 1 : positions.stop + 1]
            return PromptPart(logprobs=tuple(self._logprobs(hidden_PH, next_ids, reading.num_top)))
        total_H = hidden_PH.float().sum(dim=0)
        if reading.partial is not None:
            total_H += reading.partial
        if positions.stop < reading.end:
            return PromptPart(partial=total_H)
        pooled_H = total_H / reading.end if reading.purpose == "mean" else total_H
        if reading.is_normalised:
            pooled_H = torch.nn.functional.normalize(pooled_H, dim=0)
        return PromptPart(embedding=pooled_H.cpu().numpy().astype("<f4").tobytes())

    def _logprobs(self, hidden_PH: Tensor, token_ids: Seq[int], num_top: int) -> list[TokenLogprobs]:
        found: list[TokenLogprobs] = []
        for start in range(0, hidden_PH.shape[0], self._max_rows):
            logprobs = self._to_logits(hidden_PH[start : start + self._max_rows]).log_softmax(dim=-1)
            ids = torch.tensor(token_ids[start : start + self._max_rows], device=logprobs.device)
            found += read_logprobs(logprobs, ids, [num_top] * ids.shape[0])
        return found
