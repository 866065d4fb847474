"""Attention of long prompts of which nothing is cached: keys and values side by side, by cuDNN through PyTorch.

Over pages our kernel reaches 285 TFLOP/s (193 with an INT8 cache) where cuDNN reaches 570 to 610 side by side: measured
on an H100, 4096 and 8192 tokens, 16 heads of 128. cuDNN compiles a plan for each length, for 40 to 110 ms, so lengths
are padded to a few, and their plans are made at the start. Padding changes nothing: it comes last, and attention is
causal.

T tokens of a step's chunks, N query heads, K key/value heads, D head_dim.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepseek_engine.gpu_step import ChunkRows

GRAIN: Final = 1024
"""Lengths are padded to its multiples."""

LEAST_LENGTH: Final = 3072
"""The shortest padded one: below, launching takes longer than our own kernel."""

MOST_PADDING: Final = 1.25
"""Of a length, padded: its square is the work, and the kernel twice as fast as ours."""


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Chunks that follow one another and are attended for in one launch.

    Attributes:
        first, last: chunks, from and to before.
        first_row: of the first, among the chunks' rows.
        longest: tokens of a chunk at most.
        padded: the length of the only chunk's plan; None for our own kernel.
    """

    first: int
    last: int
    first_row: int
    longest: int
    padded: int | None


class WholePrompts:
    """Which chunks are such prompts, and their attention.

    Args:
        max_tokens: of a padded prompt at most.
        device: of the model.
    """

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        self._lengths = range(LEAST_LENGTH, max_tokens + 1, GRAIN)
        self._device = device

    @property
    def is_used(self) -> bool:
        """Whether steps are long enough."""
        return len(self._lengths) > 0

    def make_plans(self, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        """Have the library compile for each length: by the thread that attends later, which alone knows the plans."""
        for length in self._lengths:
            q = torch.zeros(length, num_heads, head_dim, dtype=dtype, device=self._device)
            k = torch.zeros(length, num_kv_heads, head_dim, dtype=dtype, device=self._device)
            _attend(q, k, k, head_dim**-0.5)

    def runs(self, chunks: ChunkRows) -> tuple[ChunkRun, ...]:
        """The step's chunks; none where all are for our own kernel."""
        if chunks.is_padded or chunks.max_len * MOST_PADDING < LEAST_LENGTH:
            return ()
        padded = [self._padded(length, context, prefix) for length, context, prefix in _lengths(chunks)]
        if not any(padded):
            return ()
        return tuple(_runs(chunks.first_rows, padded))

    def _padded(self, length: int, context: int, prefix: int) -> int | None:
        padded = max(-(-length // GRAIN) * GRAIN, LEAST_LENGTH)
        is_served = length == context and prefix == 0 and padded in self._lengths and padded <= length * MOST_PADDING
        return padded if is_served else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, run: ChunkRun, scale: float, out: Tensor) -> None:
        """Causal attention of a run of one chunk.

        Args:
            q: [T, N, D], rotated.
            k: [T, K, D], rotated.
            v: [T, K, D]; rows may lie apart.
            run: with a plan.
            scale: of the scores.
            out: [T, N, D]; the chunk's rows are written.
        """
        assert run.padded is not None
        q, k, v = (_window(each, run.first_row, run.padded) for each in (q, k, v))
        out[run.first_row : run.first_row + run.longest] = _attend(q, k, v, scale)[: run.longest]


def _lengths(chunks: ChunkRows) -> Iterator[tuple[int, int, int]]:
    """Of each chunk: its tokens, those with what is cached before, and its bidirectional prefix."""
    bounds = itertools.pairwise(chunks.first_rows)
    for (begin, end), context, prefix in zip(bounds, chunks.host_context_lens, chunks.host_prefix_lens, strict=True):
        yield end - begin, context, prefix


def _runs(first_rows: Sequence[int], padded: Sequence[int | None]) -> Iterator[ChunkRun]:
    for (length, _), places in itertools.groupby(range(len(padded)), lambda at: (padded[at], at if padded[at] else -1)):
        found = list(places)
        first, last = found[0], found[-1] + 1
        longest = max(first_rows[at + 1] - first_rows[at] for at in found)
        yield ChunkRun(first, last, first_rows[first], longest, length)


def _window(x: Tensor, first: int, length: int) -> Tensor:
    """Rows from the first on, and zeros behind the last: others' rows may follow a chunk, but nothing infinite."""
    missing = first + length - x.shape[0]
    return x[first : first + length] if missing <= 0 else F.pad(x[first:], (0, 0, 0, 0, 0, missing))


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """[length, N, D] of [length, heads, D]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION if q.is_cuda else SDPBackend.MATH):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)
