"""How the sampling kernels are told what each row asked for: one record a row, and behind them words of any length.

R rows of logits, V vocabulary. Host and device share the layout, so that a step's parameters are one copy.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS

ROW: Final = np.dtype(
    [
        ("seed", np.uint64),
        ("position", np.int64),
        ("counts_address", np.int64),  # of the row's token counts, int32 [V] on the device; 0 is none
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("temperature", np.float32),
        ("repetition_penalty", np.float32),
        ("presence_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("flags", np.int32),
        ("top_k", np.int32),
        ("forced_token_id", np.int32),  # -1 is none
        ("mask_at", np.int32),  # where the words of the grammar's mask begin; -1 is none
        ("bias_at", np.int32),  # first the token ids, then as many float32
        ("num_bias", np.int32),
        ("forbidden_at", np.int32),
        ("num_forbidden", np.int32),
    ]
)
ROW_BYTES: Final = ROW.itemsize
assert ROW_BYTES == 88, "the kernels read fields by their place"

IS_RANDOM: Final = 1
IS_FILTERED: Final = 2
IS_ADJUSTED: Final = 4
IS_REPORTED: Final = 8

IN_PROMPT: Final = 1
"""A token's count is twice how often it is in the answer, plus this if the repetition penalty asks about the prompt and
it is there."""
IN_ANSWER: Final = 2

MAX_FORBIDDEN: Final = 320
"""Stop tokens of a row before `min_tokens`: 256 that a request may name, and the model's own."""

RESULT_WORDS: Final = 2 + 2 * MAX_LOGPROBS
"""A row's result in words: token id, its log-probability, ids of the likeliest tokens, their log-probabilities."""


def neutral_row() -> np.ndarray:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
    """One record that asks for the likeliest token: what rows beyond the batch hold."""
    row = np.zeros(1, ROW)
    row["temperature"] = row["repetition_penalty"] = row["top_p"] = 1.0
    row["forced_token_id"] = row["mask_at"] = -1
    return row


def num_words(max_rows: int, vocab_size: int) -> int:
    """Words behind the records that the rows need at most."""
    return max_rows * (-(-vocab_size // 32) + 2 * MAX_LOGIT_BIAS + MAX_FORBIDDEN)


@dataclass(frozen=True, slots=True)
class Needs:
    """Which kernels a batch needs; batches with equal needs may share a CUDA graph.

    Without any, rows get their likeliest tokens and no record is read: a graph may choose before they are there.

    Attributes:
        adjust: some row has penalties, bias, forbidden tokens, a grammar's mask or a forced token.
        random: some row draws.
        filter: some row draws from a part of the vocabulary.
        report: some row reports log-probabilities.
    """

    adjust: bool = False
    random: bool = False
    filter: bool = False
    report: bool = False


NOTHING: Final = Needs()
"""What a greedy batch needs beside the likeliest tokens."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sizes of the kernels' tiles; powers of two. Tokens do not depend on them beyond rounding.

    Attributes:
        block: tokens that a program of the first pass reads.
        group: tokens whose greatest logit is kept, for finding candidates without another pass.
        candidates: groups whose greatest logits are looked for where a row's filters give no number.
        capacity: candidates that are sorted at most. Rows that need more walk through all tokens.
        tile: tokens that are walked through at once.
    """

    block: int = 4096
    group: int = 64
    candidates: int = 256
    capacity: int = 1024
    tile: int = 4096

    @property
    def report_capacity(self) -> int:
        """So many candidates that the MAX_LOGPROBS likeliest are always among them: all of as many groups."""
        return 1 << (MAX_LOGPROBS * self.group - 1).bit_length()


class RowTable:
    """Records and words on the device, or on the host; the same memory read as four types.

    Args:
        buffer: int64, as many as `num_int64` says.
        max_rows: records at its beginning.
    """

    def __init__(self, buffer: Tensor, max_rows: int) -> None:
        records = buffer[: max_rows * (ROW_BYTES // 8)]
        self.buffer = buffer
        self.max_rows = max_rows
        self.int64 = records
        self.float64 = records.view(torch.float64)
        self.int32 = buffer.view(torch.int32)
        self.float32 = buffer.view(torch.float32)

    @classmethod
    def empty(cls, max_rows: int, vocab_size: int, device: torch.device, *, pinned: bool = False) -> Self:
        """Room for so many rows, all neutral."""
        size = max_rows * (ROW_BYTES // 8) + -(-num_words(max_rows, vocab_size) // 2)
        buffer = torch.zeros(size, dtype=torch.int64, pin_memory=pinned, device=device)
        neutral = torch.from_numpy(neutral_row().view(np.int64))
        buffer[: max_rows * (ROW_BYTES // 8)] = neutral.repeat(max_rows).to(device)
        return cls(buffer, max_rows)

    @property
    def first_word(self) -> int:
        """Where the words behind the records begin."""
        return self.max_rows * (ROW_BYTES // 4)


@dataclass(frozen=True, slots=True)
class Scratch:
    """What the kernels of one step leave for each other; one for all steps of a stream.

    Attributes:
        adjusted: logits of rows that change them, float32 [R, V rounded up to 4].
        block_max, block_id, block_sum: of each block, its greatest logit, that one's lowest id, and the sum of the
            weights relative to it; float32, int32, float64, each [R, blocks].
        group_max: float32 [R, groups].
        groups: int32 [R, groups], those that hold candidates.
        candidates: int64 [R, the greater capacity].
        is_undecided: int32 [R].
    """

    adjusted: Tensor
    block_max: Tensor
    block_id: Tensor
    block_sum: Tensor
    group_max: Tensor
    groups: Tensor
    candidates: Tensor
    is_undecided: Tensor

    @classmethod
    def allocate(cls, rows: int, vocab_size: int, device: torch.device, config: SamplingConfig) -> Self:
        """For at most so many rows."""
        made = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in _scratch_shapes(rows, vocab_size, config).items()
        }
        return cls(**made)


def scratch_bytes(rows: int, vocab_size: int, config: SamplingConfig | None = None) -> int:
    """Memory of a `Scratch`, for the profile at start; the kernels take no other."""
    shapes = _scratch_shapes(rows, vocab_size, config or SamplingConfig()).values()
    return sum(shape[0] * shape[1] * dtype.itemsize for shape, dtype in shapes)


def _scratch_shapes(
    rows: int, vocab_size: int, config: SamplingConfig
) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    num_blocks = -(-vocab_size // config.block)
    num_groups = num_blocks * (config.block // config.group)
    return {
        "adjusted": ((rows, -(-vocab_size // 4) * 4), torch.float32),
        "block_max": ((rows, num_blocks), torch.float32),
        "block_id": ((rows, num_blocks), torch.int32),
        "block_sum": ((rows, num_blocks), torch.float64),
        "group_max": ((rows, num_groups), torch.float32),
        "groups": ((rows, num_groups), torch.int32),
        "candidates": ((rows, max(config.capacity, config.report_capacity)), torch.int64),
        "is_undecided": ((rows, 1), torch.int32),
    }
