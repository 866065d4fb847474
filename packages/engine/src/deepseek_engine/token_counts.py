"""How often each token is in the answers of sequences with penalties, kept on the device and counted there.

V vocabulary. A count takes 4 bytes a token of the vocabulary, so that only sequences that ask for penalties get a slot,
and memory is taken as they come. Slots never move: a captured graph finds them by the addresses in its rows' records.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.kernels.sampling_rows import IN_ANSWER, IN_PROMPT
from deepseek_engine.sequence import Sequence

SLOTS_AT_ONCE: Final = 8


@dataclass(slots=True)
class _Slot:
    index: int
    num_counted: int  # tokens of the answer that the device has counted once all that was launched is done
    step: int  # that last used it


class TokenCounts:
    """Slots of counts; a sequence keeps its own until it is gone or another one needs it more.

    Args:
        vocab_size: V.
        max_slots: sequences with penalties in one batch at most.
        device: where the sampler runs.
    """

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._max_slots = max_slots
        self._device = device
        self._chunks: list[Tensor] = []
        self._slots: WeakKeyDictionary[Sequence, _Slot] = WeakKeyDictionary()
        self._step = 0

    @property
    def num_bytes(self) -> int:
        """Memory that the slots take now."""
        return sum(chunk.nbytes for chunk in self._chunks)

    @property
    def max_bytes(self) -> int:
        """Memory that the slots take at most, for the profile at start."""
        return -(-self._max_slots // SLOTS_AT_ONCE) * SLOTS_AT_ONCE * _padded(self._vocab_size) * 4

    def addresses(self, sequences: Seq[Sequence], positions: Seq[int]) -> list[int]:
        """Where the counts of each sequence lie; the sampler counts the token that it chooses there.

        Called before each step, with all its sequences that have penalties. Work for a sequence whose counts are not
        there, or not of these tokens, is put on the current stream.

        Args:
            sequences: each one once.
            positions: of the tokens to choose: behind the sequence's own and those that the device has yet to report.

        Raises:
            ValueError: there are more sequences than slots.
        """
        if len(sequences) > self._max_slots:
            raise ValueError(f"{len(sequences)} sequences with penalties are more than the {self._max_slots} slots")
        self._step += 1
        for sequence in sequences:
            if (slot := self._slots.get(sequence)) is not None:
                slot.step = self._step
        found: list[int] = []
        for sequence, position in zip(sequences, positions, strict=True):
            slot = self._slots.get(sequence)
            if slot is None:
                slot = self._slots[sequence] = _Slot(self._free_index(), -1, self._step)
            counts_V = self._counts(slot.index)
            if slot.num_counted != position:
                assert position == sequence.num_output_tokens, "tokens that nobody has counted are still under way"
                self._fill(counts_V, sequence)
            slot.num_counted = position + 1
            found.append(counts_V.data_ptr())
        return found

    def _free_index(self) -> int:
        taken = {slot.index for slot in self._slots.values()}
        free = next(index for index in range(self._max_slots + 1) if index not in taken)
        if free < self._max_slots:
            while free >= len(self._chunks) * SLOTS_AT_ONCE:
                shape = (SLOTS_AT_ONCE, _padded(self._vocab_size))
                self._chunks.append(torch.zeros(shape, dtype=torch.int32, device=self._device))
            return free
        oldest = min(self._slots, key=lambda sequence: self._slots[sequence].step)
        return self._slots.pop(oldest).index

    def _counts(self, index: int) -> Tensor:
        return self._chunks[index // SLOTS_AT_ONCE][index % SLOTS_AT_ONCE]

    def _fill(self, counts_V: Tensor, sequence: Sequence) -> None:
        begin = sequence.num_prompt_tokens
        ids, counts = np.unique(np.array(sequence.token_ids[begin:], np.int64), return_counts=True)
        values = (counts * IN_ANSWER).astype(np.int32)
        if sequence.params.repetition_penalty != 1.0:  # the others do not ask about tokens of the prompt
            prompt = np.unique(np.array(sequence.token_ids[:begin], np.int64))
            ids = np.concatenate((ids, prompt))
            values = np.concatenate((values, np.full(prompt.size, IN_PROMPT, np.int32)))
        counts_V.zero_()
        counts_V.index_add_(0, self._moved(torch.from_numpy(ids)), self._moved(torch.from_numpy(values)))

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _padded(vocab_size: int) -> int:
    """So that each slot begins at a multiple of 16 bytes."""
    return -(-vocab_size // 4) * 4
