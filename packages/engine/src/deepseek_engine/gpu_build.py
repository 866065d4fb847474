"""From a loaded model to a GpuRunner: memory measured, a cache as large as fits, kernels compiled, graphs captured."""

import logging
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gpu_inputs import GpuInputs
from deepseek_engine.gpu_runner import CHUNK_SIZES, GpuRunner, graph_sizes
from deepseek_engine.gpu_warm_up import NEEDS, rehearsed_steps, warm_up_prompt
from deepseek_engine.hidden_tails import tail_bytes
from deepseek_engine.kernels.flash_library import load_flash_attention
from deepseek_engine.kernels.triton.compile_ahead import compile_ahead
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.load_report import LoadReport
from deepseek_engine.models.gpu_decoder import DecoderPlan, GpuDecoder
from deepseek_engine.models.gpu_mtp import GpuMtpDecoder
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sequence import ScheduledSequence
from deepseek_engine.start_clock import StartClock

logger = logging.getLogger(__name__)

GRAPH_BYTES: Final = 2 << 30
"""Kept free of the cache for CUDA graphs and what libraries take as they are first used."""
MAX_NGRAM_ROWS: Final = 256
"""Rows of a step that verifies n-grams: about as many as a GPU multiplies while it reads the weights. Each row beyond
them costs what a token does."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What the settings come to on this device.

    Attributes:
        max_model_len: context in tokens.
        dtype: of weights and, unless it is quantised, of the cache.
        clock: of the start.
    """

    config: EngineConfig
    max_model_len: int
    dtype: torch.dtype
    device: torch.device
    clock: StartClock = field(default_factory=StartClock)

    @property
    def max_rows(self) -> int:
        """Rows that one step samples at most."""
        return max(self.config.max_num_seqs, self.max_draft_rows)

    @property
    def max_draft_rows(self) -> int:
        """The same of a step with drafts; all of those are CUDA graphs."""
        config = self.config
        num_rows = min(config.max_num_seqs * (1 + config.num_drafts), config.max_num_batched_tokens)
        return min(num_rows, MAX_NGRAM_ROWS) if config.speculation == "ngram" else num_rows

    @property
    def max_blocks(self) -> int:
        """Of a sequence."""
        return -(-self.max_model_len // self.config.block_size)

    def for_decoder(self) -> DecoderPlan:
        """The decoder's part."""
        config = self.config
        return DecoderPlan(
            max_rows=self.max_rows,
            max_model_len=self.max_model_len,
            max_tokens=config.max_num_batched_tokens,
            num_drafts=config.num_drafts,
            flash=load_flash_attention() if config.attention_backend == "flash" else None,
            uses_bitsandbytes=config.linear_backend == "bitsandbytes",
        )


def put_on_device(model: Transformer, device: torch.device) -> None:
    """Give a model that was made on the meta device its memory, without values."""
    model.to_empty(device=device)
    model.cos_sin = model.cos_sin.to(device)
    if model.config.tie_word_embeddings:
        model.tie_head()


def build_gpu_runner(model: Transformer, report: LoadReport, plan: GpuPlan) -> GpuRunner:
    """Make the runner of a loaded model.

    Args:
        model: on the device; its tensors are taken over.
        report: of what was loaded.
        plan: for the device.

    Raises:
        ModelLoadError: memory does not suffice.
    """
    config, clock = plan.config, plan.clock
    decoder_type = GpuDecoder if model.mtp is None else GpuMtpDecoder
    decoder = decoder_type(model, _make_cache(model, 1, plan), plan.for_decoder())
    if plan.device.type == "cuda":
        with clock.part("plans"):
            decoder.make_plans()
    num_blocks = _choose_num_blocks(model, decoder, report, plan)
    cache = _make_cache(model, num_blocks, plan)
    decoder.attach(cache)
    cache_bytes = cache.num_bytes + (decoder.num_tail_bytes if isinstance(decoder, GpuMtpDecoder) else 0)
    info = RunnerInfo(
        max_model_len=plan.max_model_len,
        vocab_size=model.config.vocab_size,
        hidden_size=model.config.hidden_size,
        num_blocks=num_blocks,
        block_size=config.block_size,
        dtype=str(plan.dtype).removeprefix("torch."),
        device=plan.device.type,
        weight_bytes=report.num_bytes,
        weight_bytes_by_dtype=dict(report.bytes_by_dtype),
        kernels=decoder.kernels(),
        kv_cache_bytes=cache_bytes,
        max_prefix_len=config.max_num_batched_tokens if config.prompt_attention == "bidirectional" else None,
        max_draft_rows=plan.max_draft_rows,
        drafts_beside_prompts=not decoder.has_static_chunks,  # or else they would take its graph from a chunk
    )
    runner = _make_runner(decoder, info, report, plan)
    if plan.device.type == "cuda":
        chunk_sizes = [size for size in CHUNK_SIZES if size <= config.max_num_batched_tokens]
        _rehearse(runner, decoder, plan, computes=True)
        with clock.part("capture"):
            sizes = graph_sizes(config.max_num_seqs)
            draft_sizes = graph_sizes(plan.max_draft_rows) if config.num_drafts else []
            runner.capture(sizes, chunk_sizes, draft_sizes)
    runner.load_report = replace(report, seconds_by_part=clock.seconds)
    logger.info(
        "loaded %s: %s, %d tensors, %.0f MB of weights as %s, %d KV blocks of %d tokens (%.0f MB), ready in %s",
        config.model, model.config.architecture, report.num_tensors, report.num_bytes / 1e6, info.dtype,
        num_blocks, config.block_size, cache_bytes / 1e6, clock,
    )  # fmt: skip
    logger.info("weights: %s", report)
    logger.info("kernels: %s", "; ".join(f"{part}: {name}" for part, name in info.kernels.items()))
    return runner


def _make_runner(decoder: GpuDecoder, info: RunnerInfo, report: LoadReport, plan: GpuPlan) -> GpuRunner:
    inputs = GpuInputs(plan.max_rows, plan.max_blocks, plan.config.block_size, plan.device)
    return GpuRunner(
        decoder, inputs, info, report, plan.max_rows, plan.config.max_num_seqs, plan.config.num_drafts
    )  # fmt: skip


def _make_cache(model: Transformer, num_blocks: int, plan: GpuPlan) -> KVCache:
    config = plan.config
    try:
        return KVCache(
            model.config.cache_specs, num_blocks, config.block_size, plan.dtype, plan.device,
            is_int8=config.kv_cache_dtype == "int8",
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"a KV cache of {num_blocks} blocks does not fit the GPU: give a smaller gpu_memory_utilization, "
            "kv_cache_memory_bytes or num_kv_blocks"
        ) from error


def _choose_num_blocks(model: Transformer, decoder: GpuDecoder, report: LoadReport, plan: GpuPlan) -> int:
    config = plan.config
    token_bytes = model.config.kv_bytes_per_token(plan.dtype.itemsize, is_int8=config.kv_cache_dtype == "int8")
    block_bytes = token_bytes * config.block_size
    if model.mtp is not None:
        block_bytes += tail_bytes(config.block_size, config.num_drafts, model.config.hidden_size, plan.dtype)
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    if config.kv_cache_memory_bytes is not None:
        num_blocks, given = config.kv_cache_memory_bytes // block_bytes, f"{config.kv_cache_memory_bytes=}"
    else:
        room = _measure_room(decoder, report, plan)
        num_blocks, given = room // block_bytes, f"{config.gpu_memory_utilization=}"
    if num_blocks < 1:
        raise ModelLoadError(
            f"{given.removeprefix('config.')} leaves no room for a KV cache beside "
            f"{report.num_bytes / 1e9:.2g} GB of weights and what a step needs: one block takes {block_bytes} bytes"
        )
    return num_blocks


def _measure_room(decoder: GpuDecoder, report: LoadReport, plan: GpuPlan) -> int:
    """Bytes that a cache may take beside the weights, the largest step and the worst sampling."""
    config = plan.config
    if plan.device.type != "cuda":
        return 1 << 28
    info = RunnerInfo(
        max_model_len=plan.max_model_len, vocab_size=decoder.config.vocab_size, num_blocks=1,
        block_size=config.block_size, dtype="", device="cuda", weight_bytes=report.num_bytes, kv_cache_bytes=0,
    )  # fmt: skip
    runner = _make_runner(decoder, info, report, plan)
    batch: list[ScheduledSequence] = []
    left = config.max_num_batched_tokens
    while left > 0 and len(batch) < config.max_num_seqs:
        batch.append(_prompt_of(min(left, plan.max_model_len - 1), plan))
        left -= batch[-1].num_new_tokens
    # Drafts are sampled behind; a step may not have them all.
    rows = [_prompt_of(1, plan) for _ in range(plan.max_rows)]
    _rehearse(runner, decoder, plan, computes=False)  # or else these steps compile one kernel after another
    with plan.clock.part("profile"):
        torch.cuda.reset_peak_memory_stats()
        runner.forward(batch)
        runner.sample(runner.forward(rows), rows)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del runner
        torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()  # other processes, and what libraries hold
    return int(total * config.gpu_memory_utilization) - outside - peak - GRAPH_BYTES


def _prompt_of(num_tokens: int, plan: GpuPlan) -> ScheduledSequence:
    return warm_up_prompt(num_tokens, plan.config.block_size)


def _rehearse(runner: GpuRunner, decoder: GpuDecoder, plan: GpuPlan, *, computes: bool) -> None:
    """Compile all kernels, several at a time; if it `computes`, then launch each for the first time as well."""
    steps = list(rehearsed_steps(plan.config, plan.max_model_len, plan.max_rows, decoder.latent))
    with plan.clock.part("compile"), compile_ahead(plan.device) as compilation:
        runner.rehearse(steps, NEEDS)
    logger.info("compiled %d kernels", compilation.num_kernels)
    if computes:
        with plan.clock.part("warm-up"):
            runner.rehearse(steps, NEEDS)
            torch.cuda.synchronize()
