"""The Runner of a GPU: steps of single tokens are replays of CUDA graphs, and no step waits for the one before.

A step is one copy to the device, the launches of the decoder and the sampler, and one copy back. Tokens that the last
step has sampled are read where they are, so that the next step may be launched before the host knows them.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from deepseek_engine.gpu_drafter import GpuDrafter
from deepseek_engine.gpu_inputs import MAX_GRAPHED_CHUNKS, GpuInputs
from deepseek_engine.gpu_sampler import GpuSampler
from deepseek_engine.gpu_step import GpuStep
from deepseek_engine.kernels.sampling_rows import NOTHING, Needs
from deepseek_engine.kernels.triton.embedding import embed
from deepseek_engine.load_report import LoadReport
from deepseek_engine.lora.host import LoraHost
from deepseek_engine.models.gpu_decoder import GpuDecoder
from deepseek_engine.models.gpu_mtp import GpuMtpDecoder
from deepseek_engine.prompt_reader import PromptReader
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sequence import SampledToken, ScheduledSequence, Sequence

logger = logging.getLogger(__name__)

_SMALL_SIZES: Final = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)
_LARGE_STEP: Final = 32
CHUNK_SIZES: Final = (32, 64, 128, 256, 512, 768, 1024, 1536, 2048)
"""Tokens of prefill chunks that get a graph: larger steps keep the device busy for longer than launching them takes."""


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes that get a graph: a batch is padded to the next one, by an eighth or so at most."""
    sizes = [size for size in _SMALL_SIZES if size < max_rows]
    sizes += range(_SMALL_SIZES[-1] + _LARGE_STEP, max_rows, _LARGE_STEP)
    return [*sizes, max_rows]


Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step of so many single-token rows: forward, logits, and the likeliest tokens.

    Attributes:
        hidden: None where the last norm is part of the head.
    """

    graph: torch.cuda.CUDAGraph
    hidden: Tensor | None
    logits: Tensor


class LaunchedStep:
    """A step that the device has been given."""

    def __init__(self, sampler: GpuSampler, row_of: Mapping[Sequence, int]) -> None:
        self._sampler = sampler
        self.row_of = row_of

    def wait(self) -> list[SampledToken]:
        """See `Launched`."""
        return self._sampler.collect()


class GpuRunner:
    """Runs one model on one GPU.

    Args:
        decoder: with its cache.
        inputs: for batches of up to `max_rows` single tokens.
        info: of the model.
        load_report: of the model.
        max_rows: rows sampled in one step at most.
        max_num_seqs: sequences in one step at most.
        max_drafts: of each of them at most.
    """

    def __init__(
        self,
        decoder: GpuDecoder,
        inputs: GpuInputs,
        info: RunnerInfo,
        load_report: LoadReport,
        max_rows: int,
        max_num_seqs: int,
        max_drafts: int,
    ) -> None:
        self.adapters: LoraHost | None = None
        self.drafter: GpuDrafter | None = None
        self.failure: str | None = None
        self._is_closed = False
        self.info = info
        self.load_report = load_report
        self._decoder, self._inputs = decoder, inputs
        device = decoder.device
        self._sampled = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._sampler = GpuSampler(info.vocab_size, max_rows, device)
        self._prompt_reader = PromptReader(lambda hidden: decoder.logits(hidden).float(), info.vocab_size)
        if isinstance(decoder, GpuMtpDecoder):
            self.drafter = GpuDrafter(decoder, inputs, self._sampler, max_num_seqs, max_drafts, info.block_size)
        self._graphs: dict[bool, dict[int, _Graph]] = {False: {}, True: {}}
        """Of single tokens, by whether rows need each other's keys, as a sequence's drafts do, then by rows."""
        self._max_singles = 0
        self._mixed: dict[tuple[int, int], _Graph] = {}
        self._chunk_sizes: list[int] = []
        self._chosen_of: Tensor | None = None

    @property
    def launcher(self) -> "GpuRunner":
        """See `Runner`: itself."""
        return self

    @property
    def penalises_on_host(self) -> bool:
        """See `Launcher`: counts are kept on the device."""
        return False

    @torch.inference_mode()
    def capture(self, sizes: Seq[int], chunk_sizes: Seq[int], draft_sizes: Seq[int] = ()) -> None:
        """Make the graphs of these batch sizes; the largest first, so that the others find their memory.

        Args:
            sizes: rows of steps of single tokens, and sequences that are guessed for at once.
            chunk_sizes: tokens of prefill chunks, each with and without a full batch of single tokens.
            draft_sizes: rows of steps with drafts.
        """
        began = time.monotonic()
        pool = torch.cuda.graph_pool_handle()
        if not self._decoder.has_static_chunks:
            chunk_sizes = ()
        self._inputs.clear()
        if chunk_sizes:
            self._inputs.reserve_chunks(max(chunk_sizes))
        for num_tokens in sorted(chunk_sizes, reverse=True):
            for num_singles in (max(sizes), 0):
                step = self._inputs.mixed(num_singles, num_tokens)
                self._mixed[num_singles, num_tokens] = self._captured(step, pool)
        for size, has_drafts in self._single_graphs(sizes, draft_sizes):
            step = GpuStep(self._inputs.singles(size), None, has_drafts, None, size, {})
            self._graphs[has_drafts][size] = self._captured(step, pool)
        self._max_singles, self._chunk_sizes = max(sizes), sorted(chunk_sizes)
        if self.drafter is not None:
            self.drafter.capture(sorted(sizes, reverse=True), lambda compute: _capture(compute, pool)[0])
        torch.cuda.synchronize()
        num_guesses = 0 if self.drafter is None else len(sizes)
        num_graphs = sum(map(len, self._graphs.values())) + len(self._mixed) + num_guesses
        logger.info("captured %d CUDA graphs in %.1f s", num_graphs, time.monotonic() - began)

    def _single_graphs(self, sizes: Seq[int], draft_sizes: Seq[int]) -> list[tuple[int, bool]]:
        """Rows of each graph of single tokens, and whether it is for drafts alone; the most rows first."""
        if self._decoder.has_static_drafts:
            return [(size, False) for size in sorted({*sizes, *draft_sizes}, reverse=True)]
        drafts = [(size, True) for size in draft_sizes if size > 1]
        return sorted([*drafts, *((size, False) for size in sizes)], reverse=True)

    def _captured(self, step: GpuStep, pool: Any) -> _Graph:
        with self._decoder.few_layers():  # what is done at a first launch is done outside of the capture
            self._compute_graphed(step)
        graph, (hidden, logits) = _capture(lambda: self._compute_graphed(step), pool)
        return _Graph(graph, hidden, logits)

    @torch.inference_mode()
    def forward(self, batch: Seq[ScheduledSequence]) -> Tensor:
        """Compute the batch; logits [sampled rows, vocab_size]."""
        _, hidden, logits = self._compute(batch, None)
        self._chosen_of = logits  # a graph has chosen the likeliest tokens of these
        if any(scheduled.read_positions for scheduled in batch):
            assert hidden is not None, "no graph serves a step that is read"
            return self._decoder.logits(self._prompt_reader.split(hidden, batch))
        return self._logits(hidden, logits)

    @torch.inference_mode()
    def read_prompts(self, batch: Seq[ScheduledSequence]) -> list[PromptPart]:
        """What the last step says of each prompt that it was to read."""
        return self._prompt_reader.read(batch)

    @torch.inference_mode()
    def sample(self, logits: Tensor, batch: Seq[ScheduledSequence]) -> list[SampledToken]:
        """One token for each row, in the batch's order."""
        sequences = [s.sequence for s in batch for _ in range(s.num_sampled_rows)]
        if not sequences:
            return []
        self._sampler.prepare(sequences, [offset for s in batch for offset in range(s.num_sampled_rows)])
        if logits is not self._chosen_of or self._sampler.needs != NOTHING:
            self._sampler.sample(logits, self._sampled)
        self._chosen_of = None
        self._sampler.send()
        return self._sampler.collect()

    @torch.inference_mode()
    def launch(self, batch: Seq[ScheduledSequence], previous: LaunchedStep | None) -> LaunchedStep:
        """See `Launcher`."""
        step, hidden, logits = self._compute(batch, None if previous is None else previous.row_of)
        self._sampler.prepare([s.sequence for s in batch if s.num_sampled_rows])
        is_chosen = logits is not None and self._sampler.needs == NOTHING  # by the graph
        if not is_chosen:
            self._sampler.sample(self._logits(hidden, logits), self._sampled)
        self._sampler.send()
        return LaunchedStep(self._sampler, step.sampled_row_of)

    @torch.inference_mode()
    def rehearse(self, batches: Iterable[Seq[ScheduledSequence]], needs: Seq[Needs]) -> None:
        """Launch, before there are graphs, what these batches and these needs of the sampler take; without results."""
        with self._decoder.few_layers():
            first, *others = batches
            logits = self.forward(first)
            for each in needs:  # early, as these take longest to compile
                self._sampler.sample(logits[:1], self._sampled, each)
            for batch in others:
                self.forward(batch)
            if self.drafter is not None:
                self.drafter.rehearse()

    def set_sampling_kernels(self, choose_tokens: Callable[..., None]) -> None:
        """See `GpuSampler.set_kernels`."""
        self._sampler.set_kernels(choose_tokens)

    def free_caches(self) -> None:
        """Give back memory that is kept for the next step."""
        self._prompt_reader.forget()
        self._free()

    def close(self) -> None:
        """Give back the device's memory: whoever still holds this runner holds its description only."""
        if self._is_closed:
            return
        self._is_closed = True
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._graphs = {False: {}, True: {}}
        self._mixed.clear()
        self._chunk_sizes = []
        if self.drafter is not None:
            self.drafter.release()
        self._decoder.release()
        del self._sampler, self._inputs, self._sampled, self._prompt_reader
        self._free()

    def _free(self) -> None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _compute(
        self, batch: Seq[ScheduledSequence], previous: Mapping[Sequence, int] | None
    ) -> tuple[GpuStep, Tensor | None, Tensor | None]:
        """The step, and of its rows hidden states, or logits if a graph has made them, or both."""
        num_singles = sum(1 for s in batch if s.num_new_tokens == 1)
        num_drafts = sum(len(s.draft_token_ids) for s in batch)
        has_drafts = num_drafts > 0
        if num_singles < len(batch):
            graph_key = None if has_drafts else self._mixed_key(batch, num_singles)
            if graph_key is not None:
                step = self._inputs.prepare_mixed(batch, *graph_key, previous)
                return step, *self._replayed(self._mixed[graph_key], step.num_rows)
        num_rows = len(batch) + num_drafts
        is_read = len(batch) == 1 and bool(batch[0].read_positions)
        graphs = self._graphs[has_drafts and not self._decoder.has_static_drafts]
        has_graph = num_singles == len(batch) and not is_read
        size = min((size for size in graphs if size >= num_rows), default=None) if has_graph else None
        step = self._inputs.prepare(batch, size, previous)
        if size is None or step.row_ids is not None:
            return step, self._hidden(step), None
        return step, *self._replayed(graphs[size], num_rows)

    def _mixed_key(self, batch: Seq[ScheduledSequence], num_singles: int) -> tuple[int, int] | None:
        """Which graph serves a step with prefill chunks; None if none does."""
        chunks = [s for s in batch if s.num_new_tokens > 1]
        num_tokens = sum(s.num_new_tokens for s in chunks)
        size = next((size for size in self._chunk_sizes if size >= num_tokens), None)
        if size is None or len(chunks) > MAX_GRAPHED_CHUNKS or num_singles > self._max_singles:
            return None
        if any(s.sequence.prefix_len or s.read_positions for s in batch):
            return None
        return (self._max_singles if num_singles else 0), size

    def _logits(self, hidden: Tensor | None, logits: Tensor | None) -> Tensor:
        """Those that a graph has made, or else of the hidden states."""
        if logits is not None:
            return logits
        assert hidden is not None
        return self._decoder.logits(hidden)

    def _replayed(self, graph: _Graph, num_rows: int) -> tuple[Tensor | None, Tensor]:
        graph.graph.replay()
        return None if graph.hidden is None else graph.hidden[:num_rows], graph.logits[:num_rows]

    def _compute_graphed(self, step: GpuStep) -> tuple[Tensor | None, Tensor]:
        hidden, logits = self._decoder.logits_of_step(step, self._embedded(step))
        self._sampler.sample(logits, self._sampled[: step.num_rows], NOTHING)
        return hidden, logits

    def _hidden(self, step: GpuStep) -> Tensor:
        return self._decoder.hidden(step, self._embedded(step))

    def _embedded(self, step: GpuStep) -> Tensor:
        parts = [part.token_ids for part in (step.singles, step.chunks) if part is not None]
        token_ids = parts[0] if len(parts) == 1 else torch.cat(parts)
        sources = None if step.singles is None else step.singles.sources
        return embed(token_ids, sources, self._sampled, self._decoder.embedding)


def _capture(compute: Callable[[], Made], pool: Any) -> tuple[torch.cuda.CUDAGraph, Made]:
    """A graph of what a function launches, and what it gives, which each replay writes again."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        made = compute()
    return graph, made
