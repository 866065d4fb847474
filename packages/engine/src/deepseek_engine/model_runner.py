"""The model, its KV cache and its sampler behind the Runner protocol: a scheduled batch to logits to tokens."""

import gc
import logging
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from deepseek_engine.checkpoint_decoding import DecodedSource, store_as_checkpoint_does
from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.checkpoint import GGUFCheckpoint
from deepseek_engine.gpu_limits import check_attention, check_bitsandbytes, check_settings, check_types, gpu_dtype
from deepseek_engine.hidden_tails import HiddenTails, tail_bytes
from deepseek_engine.host_memory import available_memory_bytes, return_freed_memory
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.load_report import LoadReport
from deepseek_engine.lora.appliers import FusedApplier, LayerApplier
from deepseek_engine.lora.host import LoraHost
from deepseek_engine.lora.targets import Target, adaptable_projections
from deepseek_engine.model_config import GroupedQueryConfig, ModelConfig, parse_model_config, read_model_config
from deepseek_engine.model_source import resolve_model
from deepseek_engine.models.fused_decoder import fuse
from deepseek_engine.models.mtp import with_mtp
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.mtp_model import MtpModel
from deepseek_engine.parallel.group import ParallelGroup, device_of_rank
from deepseek_engine.parallel.leader import Leader
from deepseek_engine.parallel.partition import part_of_rank, threads_of_rank
from deepseek_engine.parallel.peers import ALONE, Peers
from deepseek_engine.prompt_reader import PromptReader
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.random_source import RandomSource
from deepseek_engine.runner_protocol import Drafter, Launcher, Runner, RunnerInfo
from deepseek_engine.safetensors_source import SafetensorsSource
from deepseek_engine.sampler import Sampler
from deepseek_engine.sequence import SampledToken, ScheduledSequence
from deepseek_engine.shapes import is_shape, shape_fields
from deepseek_engine.step_model import FusedModel, StepModel, TorchModel
from deepseek_engine.weights import CheckpointSource, load_weights, store_as_int8

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN: Final = 8192
SHARE_OF_CONTEXT: Final = 8
SHARE_OF_FREE_MEMORY: Final = 4


class ModelRunner:
    """Runs one model on one device, or a rank's part of it."""

    def __init__(
        self,
        model: StepModel,
        info: RunnerInfo,
        load_report: LoadReport,
        adapters: LoraHost | None = None,
        peers: Peers = ALONE,
    ) -> None:
        self.adapters = adapters
        self.launcher: Launcher[Any] | None = None
        self.drafter: Drafter | None = model if isinstance(model, MtpModel) else None
        self._peers = peers
        self.load_report = load_report
        self.model = model
        self.info = info
        self._sampler = Sampler(info.vocab_size)
        self._prompt_reader = PromptReader(model.logits, info.vocab_size)

    @torch.inference_mode()
    def forward(self, batch: Seq[ScheduledSequence]) -> Tensor:
        """Compute the batch; logits [sampled rows, vocab_size], float32."""
        with self._peers.step(batch):
            return self.model.logits(self._prompt_reader.split(self.model.hidden(batch), batch))

    @torch.inference_mode()
    def read_prompts(self, batch: Seq[ScheduledSequence]) -> list[PromptPart]:
        """What the last step says of each prompt that it was to read."""
        with self._peers.prompt_reading():
            return self._prompt_reader.read(batch)

    @torch.inference_mode()
    def sample(self, logits: Tensor, batch: Seq[ScheduledSequence]) -> list[SampledToken]:
        """One token for each row, in the batch's order."""
        sequences = [s.sequence for s in batch for _ in range(s.num_sampled_rows)]
        offsets = [offset for s in batch for offset in range(s.num_sampled_rows)]
        return self._sampler.sample(logits, sequences, offsets)

    def free_caches(self) -> None:
        """Give back memory that is kept for the next step: scratch, prompt rows, and what allocators hold on to."""
        self._peers.free_caches()
        self._prompt_reader.forget()
        self.model.free_scratch()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return_freed_memory()

    @property
    def failure(self) -> str | None:
        """See `Runner`."""
        return self._peers.failure

    def close(self) -> None:
        """See `Runner`."""
        self._peers.close()


class LoadedRunner(Runner[Tensor], Protocol):
    """A runner, with what it loaded."""

    load_report: LoadReport


def build_runner(config: EngineConfig) -> LoadedRunner:
    """Load the model that `config` names onto the device that it names, and reserve its KV cache.

    Other ranks, if there are any, do so beside this process.

    Raises:
        ModelLoadError: the checkpoint is missing, broken or not supported, or does not fit the settings.
        EngineDeadError: another rank did not come up.
    """
    device = choose_device(config.device)
    if device.type == "cpu":
        return build_cpu_runner(config)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    return _build_on_gpu(config, device)


def build_cpu_runner(config: EngineConfig) -> ModelRunner:
    """`build_runner` for the CPU, whatever `config.device` is."""
    if config.attention_backend != "auto":
        raise ModelLoadError(
            f"attention_backend={config.attention_backend!r} is for GPUs, and the device is 'cpu': use "
            "attention_backend='auto'"
        )
    if config.linear_backend != "auto":
        raise ModelLoadError(
            f"linear_backend={config.linear_backend!r} needs a GPU, and the device is 'cpu': use linear_backend='auto'"
        )
    if config.tensor_parallel_size == 1:
        return build_rank(config, ALONE)
    leader = Leader(config)
    try:
        return build_rank(config, leader)
    except BaseException:
        leader.close()
        raise


def build_rank(config: EngineConfig, peers: Peers) -> ModelRunner:
    """Load one rank's part on the CPU; arguments and errors as of `build_runner`."""
    device, dtype = torch.device("cpu"), choose_dtype(config.dtype)
    num_threads = threads_of_rank(config)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    model_config, source = _open_configured(config, device)
    model_config = part_of_rank(model_config, config)
    max_model_len = _choose_max_model_len(config, model_config)
    is_int8_cache = config.kv_cache_dtype == "int8"
    if is_int8_cache:
        _check_int8_cache(model_config, device)
    group = peers.join(device)
    device = device_of_rank(device, group.rank)
    model = _make_model(config, model_config, source, max_model_len, dtype, group)
    with torch.inference_mode():
        report = load_weights(model, source)
    num_blocks = peers.agree_on_blocks(_choose_num_blocks(config, model_config, max_model_len, dtype))
    tails = None
    if model.mtp is not None:
        tails = HiddenTails(num_blocks, config.block_size, config.num_drafts, model_config.hidden_size, dtype)
    cache = KVCache(model_config.cache_specs, num_blocks, config.block_size, dtype, device, is_int8=is_int8_cache)
    info = RunnerInfo(
        max_model_len=max_model_len,
        vocab_size=model_config.vocab_size,
        hidden_size=model_config.hidden_size,
        num_blocks=num_blocks,
        block_size=config.block_size,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        weight_bytes=report.num_bytes,
        weight_bytes_by_dtype=dict(report.bytes_by_dtype),
        kv_cache_bytes=cache.num_bytes + (0 if tails is None else tails.num_bytes),
        max_prefix_len=config.max_num_batched_tokens if config.prompt_attention == "bidirectional" else None,
    )
    logger.info(
        "loaded %s: %s, %d tensors, %.0f MB of weights as %s, %d KV blocks of %d tokens (%.0f MB), %d threads",
        config.model, model_config.architecture, report.num_tensors, report.num_bytes / 1e6, info.dtype,
        num_blocks, config.block_size, info.kv_cache_bytes / 1e6, torch.get_num_threads(),
    )  # fmt: skip
    logger.info("weights: %s", report)
    if not config.enable_lora:
        step_model = _prepare(model, cache, max_model_len, tails)
        return ModelRunner(step_model, peers.ready(_with_kernels(info, step_model)), report, peers=peers)
    targets = adaptable_projections(model)
    step_model = _prepare(model, cache, max_model_len, tails, targets)
    assert step_model.applier is not None
    adapters = LoraHost(targets, step_model.applier, max_rank=config.max_lora_rank, dtype=dtype)
    return ModelRunner(step_model, _with_kernels(info, step_model), report, adapters)


def _with_kernels(info: RunnerInfo, model: StepModel) -> RunnerInfo:
    return replace(info, kernels={"everything": "ours for CPUs" if isinstance(model, FusedModel) else "torch"})


def _build_on_gpu(config: EngineConfig, device: torch.device) -> LoadedRunner:
    check_settings(config)
    dtype = gpu_dtype(config)
    try:  # Triton is not there on machines without a GPU, nor needed
        from deepseek_engine.gpu_build import GpuPlan, build_gpu_runner, put_on_device
        from deepseek_engine.models.gpu_weights import obstacle
    except ModuleNotFoundError as error:
        raise ModelLoadError(f"device='cuda' needs {error.name}: pip install 'deepseek-engine[cuda]'") from error
    model_config, source = _open_configured(config, device)
    max_model_len = _choose_max_model_len(config, model_config)
    if config.kv_cache_dtype == "int8":
        _check_int8_cache(model_config, device)
    check_attention(config, model_config)
    if (reason := obstacle(model_config)) is not None:
        raise ModelLoadError(f"{config.model} does not run on a GPU yet, since {reason}: use device='cpu'")
    with torch.device("meta"):
        model = Transformer(model_config, max_model_len, dtype)
        store_quantized(model, config.quantization, source)
    check_types(model, dtype)
    if config.linear_backend == "bitsandbytes":
        check_bitsandbytes(model, device)
    needed, free = sum(parameter.nbytes for parameter in model.parameters()), torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise ModelLoadError(
            f"the weights of {config.model} take {needed / 1e9:.2g} GB and {free / 1e9:.2g} GB of the GPU are free: "
            "quantization int8 or dtype bfloat16 takes less"
        )
    plan = GpuPlan(config, max_model_len, dtype, device)
    with torch.inference_mode():
        with plan.clock.part("weights"):
            put_on_device(model, device)
            report = load_weights(model, source)
            torch.cuda.synchronize()
        return build_gpu_runner(model, report, plan)


def _make_model(
    config: EngineConfig,
    model_config: ModelConfig,
    source: CheckpointSource,
    max_model_len: int,
    dtype: torch.dtype,
    group: ParallelGroup,
) -> Transformer:
    """The model without its weights; memory is taken as they are written."""
    try:
        model = Transformer(model_config, max_model_len, dtype, group)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelLoadError(f"there is no room for a model of the sizes in {config.model}: {reason}") from error
    store_quantized(model, config.quantization, source)
    # Ranks on CPUs share this host's memory.
    needed, free = sum(parameter.nbytes for parameter in model.parameters()), available_memory_bytes() // group.size
    if needed > free:
        raise ModelLoadError(
            f"the weights of {config.model} take {needed / 1e9:.2g} GB and {free / 1e9:.2g} GB of memory are free: "
            "quantization int8 or dtype bfloat16 takes less"
        )
    return model


def store_quantized(model: Transformer, quantization: str | None, source: CheckpointSource) -> None:
    """Give the INT8 form to the weights that the settings or else the checkpoint want in it, before they are loaded."""
    if quantization == "int8":
        store_as_int8(model)
    elif isinstance(source, DecodedSource):
        store_as_checkpoint_does(model, source)


def _prepare(
    model: Transformer,
    cache: KVCache,
    max_model_len: int,
    tails: HiddenTails | None,
    adaptable: Mapping[str, Target] | None = None,
) -> StepModel:
    """The fastest way that this machine has to run the model, with adapters of the projections that may have them."""
    if tails is not None:
        logger.info("computing with torch's operators, since the CPU kernels have no multi-token prediction")
        return MtpModel(model, cache, tails, None if adaptable is None else LayerApplier(adaptable))
    fused = fuse(model, cache, max_model_len)
    if fused is None:
        return TorchModel(model, cache, None if adaptable is None else LayerApplier(adaptable))
    applier = None if adaptable is None else FusedApplier(adaptable, len(model.layers))
    return FusedModel(fused, cache.block_size, applier)


def _open_configured(config: EngineConfig, device: torch.device) -> tuple[ModelConfig, CheckpointSource]:
    """The model that `config` names, with the layer that guesses if it is asked for."""
    model_config, source = open_model(config.model, device)
    if config.speculation == "mtp":
        model_config = with_mtp(model_config, source.names(), config.model)
    return model_config, source


def open_model(model: str, device: torch.device) -> tuple[ModelConfig, CheckpointSource]:
    """The shape and the tensors of whatever `EngineConfig.model` names; those of a `shape:` are drawn on the device."""
    if not is_shape(model):
        return open_checkpoint(resolve_model(model))
    model_config = parse_model_config(shape_fields(model), model)
    return model_config, RandomSource(model_config, device)


def open_checkpoint(path: Path) -> tuple[ModelConfig, CheckpointSource]:
    """The shape and the tensors of a `.gguf` file or a folder of safetensors."""
    if path.is_file():
        checkpoint = GGUFCheckpoint(path)
        return checkpoint.config, checkpoint
    model_config, source = read_model_config(path), SafetensorsSource(path)
    if model_config.quantization is None:
        return model_config, source
    return model_config, DecodedSource(source, model_config.quantization)


def choose_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 where the processor multiplies it natively, else float32."""
    if name != "auto":
        return getattr(torch, name)
    capabilities = torch.cpu.get_capabilities()
    is_native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if is_native else torch.float32


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ModelLoadError: `cuda` is asked for and not there.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ModelLoadError("device='cuda', and torch finds no GPU: use device='cpu', or a torch with CUDA")
    if name == "cpu" or not has_gpu:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _choose_max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    trained, window = model_config.max_position_embeddings, model_config.sliding_window
    chosen = min(trained, DEFAULT_MAX_MODEL_LEN) if config.max_model_len is None else config.max_model_len
    if chosen > trained:
        raise ModelLoadError(f"max_model_len={chosen} is beyond the {trained} positions that the model was trained for")
    if window is not None and chosen > window:
        raise ModelLoadError(
            f"sliding_window={window} is not supported in a context of max_model_len={chosen}: attention here is full, "
            f"so set max_model_len to {window} or less"
        )
    return chosen


def _check_int8_cache(model_config: ModelConfig, device: torch.device) -> None:
    kinds = {type(layer.attention) for layer in model_config.layers}
    if kinds != {GroupedQueryConfig}:
        raise ModelLoadError(
            f"kv_cache_dtype='int8' is for grouped-query attention, and {model_config.architecture} has another kind: "
            "use kv_cache_dtype='auto'"
        )
    if device.type != "cuda":
        raise ModelLoadError(
            f"kv_cache_dtype='int8' needs a GPU, and the device is {device.type!r}: use kv_cache_dtype='auto'"
        )


def _choose_num_blocks(config: EngineConfig, model_config: ModelConfig, max_model_len: int, dtype: torch.dtype) -> int:
    token_bytes = model_config.kv_bytes_per_token(dtype.itemsize, is_int8=config.kv_cache_dtype == "int8")
    block_bytes = token_bytes * config.block_size
    if model_config.runs_mtp:
        block_bytes += tail_bytes(config.block_size, config.num_drafts, model_config.hidden_size, dtype)
    whole_context = -(-max_model_len // config.block_size)
    free = available_memory_bytes() // config.tensor_parallel_size
    if config.num_kv_blocks is not None:
        num_blocks = config.num_kv_blocks
    elif config.kv_cache_memory_bytes is not None:
        num_blocks = config.kv_cache_memory_bytes // block_bytes
        if num_blocks < 1:
            raise ModelLoadError(
                f"kv_cache_memory_bytes={config.kv_cache_memory_bytes} holds no block: one takes {block_bytes} bytes"
            )
    else:
        wanted = max(whole_context, config.max_num_seqs * whole_context // SHARE_OF_CONTEXT)
        return max(min(wanted, free // SHARE_OF_FREE_MEMORY // block_bytes), 1)
    # The system hands the cache's pages out as they are used: what it lacks, it would take by ending the process.
    if num_blocks * block_bytes > free:
        raise ModelLoadError(
            f"a KV cache of {num_blocks} blocks takes {num_blocks * block_bytes / 1e9:.2g} GB and {free / 1e9:.2g} GB "
            "of memory are free: give a smaller kv_cache_memory_bytes or num_kv_blocks"
        )
    return num_blocks
