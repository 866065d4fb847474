"""Guesses on a GPU: the layer for multi-token prediction, run for all sequences at once, in CUDA graphs where it may.

Each guess is a copy of what its rows are, and the launches of one layer, the head and the choice; a later one finds the
tokens and states of the one before on the device. The host waits once, for all of them.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Final, cast

import torch
from torch import Tensor

from deepseek_engine.gpu_inputs import GpuInputs
from deepseek_engine.gpu_sampler import GpuSampler
from deepseek_engine.gpu_step import SingleRows
from deepseek_engine.gpu_warm_up import token_counts, warm_up_prompt
from deepseek_engine.kernels.sampling_rows import NOTHING
from deepseek_engine.kernels.triton.embedding import embed
from deepseek_engine.models.gpu_mtp import GpuMtpDecoder
from deepseek_engine.sequence import Sequence

WARM_UP_TOKENS: Final = 2
"""Nothing is guessed behind fewer."""


class GpuDrafter:
    """See `Drafter`. Steps and guesses share the inputs and the sampler, since they take turns.

    Args:
        decoder: whose steps leave the hidden states.
        inputs: of the steps.
        sampler: of the steps.
        max_rows: sequences guessed for at once at most.
        max_drafts: guesses of one at most.
        block_size: tokens a block.
    """

    def __init__(
        self,
        decoder: GpuMtpDecoder,
        inputs: GpuInputs,
        sampler: GpuSampler,
        max_rows: int,
        max_drafts: int,
        block_size: int,
    ) -> None:
        self._decoder, self._inputs, self._sampler = decoder, inputs, sampler
        self._block_size = block_size
        embedding = decoder.embedding
        self._states = torch.zeros(max_rows, embedding.shape[1], dtype=embedding.dtype, device=decoder.device)
        self._likeliest = torch.zeros(max_rows, dtype=torch.int64, device=decoder.device)
        self._found = torch.zeros(max_drafts, max_rows, dtype=torch.int64, device=decoder.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def draft(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """See `Drafter`: the likeliest token each time, and the layer's own output in place of the model's."""
        most = max((count for _, count in wanted), default=0)
        rows_of: list[list[int]] = []  # of each guess, which of `wanted` have it
        sources: list[int] | None = None
        for number in range(most):
            active = [index for index, (_, count) in enumerate(wanted) if count > number]
            if rows_of:
                row_before = {index: row for row, index in enumerate(rows_of[-1])}
                sources = [row_before[index] for index in active]
            self._run([wanted[index][0] for index in active], number, sources)
            self._found[number, : len(active)].copy_(self._likeliest[: len(active)])
            rows_of.append(active)
        guesses: list[list[int]] = [[] for _ in wanted]
        found = cast("list[list[int]]", self._found[:most].tolist())
        for active, token_ids in zip(rows_of, found, strict=True):
            for index, token_id in zip(active, token_ids, strict=False):  # rows behind are of guesses before
                guesses[index].append(token_id)
        return guesses

    @torch.inference_mode()
    def draft_logits(self, sequences: Seq[Sequence]) -> Tensor:
        """What the first guesses are chosen by, [B, V]."""
        return self._compute(self._inputs.prepare_guesses(sequences, 0, None, None))

    @torch.inference_mode()
    def capture(self, sizes: Iterable[int], captured: Callable[[Callable[[], object]], torch.cuda.CUDAGraph]) -> None:
        """Make the graphs of guesses for so many sequences.

        Args:
            sizes: the largest first, so that the others find their memory.
            captured: makes a graph of what a function launches.
        """
        self._states.zero_()  # the static rows are zeros and read the first ones
        self._likeliest.zero_()
        for size in sizes:
            rows = self._inputs.singles(size)
            self._compute(rows)  # what is done at a first launch is done outside of the capture
            self._graphs[size] = captured(lambda rows=rows: self._compute(rows))

    def rehearse(self) -> None:
        """Launch what guesses for any number of sequences take; without results."""
        for count in token_counts(self._states.shape[0]):
            sequences = [warm_up_prompt(WARM_UP_TOKENS, self._block_size).sequence for _ in range(count)]
            self._compute(self._inputs.prepare_guesses(sequences, 0, None, None))

    def release(self) -> None:
        """Let go of graphs and device memory."""
        self._graphs.clear()
        self._states = self._likeliest = self._found = self._states.new_empty(0)

    def _run(self, sequences: Seq[Sequence], num_behind: int, sources: Seq[int] | None) -> None:
        """Compute a guess for each sequence into `_likeliest`, and the layer's outputs into `_states`."""
        size = next((size for size in sorted(self._graphs) if size >= len(sequences)), None)
        rows = self._inputs.prepare_guesses(sequences, num_behind, sources, size)
        if size is None:
            self._compute(rows)
        else:
            self._graphs[size].replay()

    def _compute(self, rows: SingleRows) -> Tensor:
        """The logits, [B, V]."""
        decoder, num_rows = self._decoder, rows.token_ids.shape[0]
        x_BH = embed(rows.token_ids, rows.sources, self._likeliest, decoder.embedding)
        guessed_BH = decoder.guess(rows, x_BH, self._states)
        logits = decoder.logits(guessed_BH)
        self._states[:num_rows].copy_(guessed_BH)
        self._sampler.sample(logits, self._likeliest[:num_rows], NOTHING)
        return logits
