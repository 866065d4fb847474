"""`deepseek-bench offline` with workloads: build the engine, time it, set the times beside the device's limits."""

import gc
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deepseek_engine.bench.ceilings import Ceilings, measure_ceilings
from deepseek_engine.bench.offline import peak_rss_mib
from deepseek_engine.bench.roofline import Roofline, active_bytes
from deepseek_engine.bench.step_profile import profile_decode
from deepseek_engine.bench.workloads import WORKLOADS, Workload, WorkloadRun
from deepseek_engine.config import EngineConfig
from deepseek_engine.llm import LLM
from deepseek_engine.model_runner import open_model, store_quantized
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.shapes import PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """One run, as the flags have it.

    Attributes:
        names: keys of `WORKLOADS`.
        scale: of requests and tokens; 1 is what published numbers are of.
        output: a file that the line of JSON is appended to.
        profile: a file for the table of a decode step's kernels.
    """

    names: tuple[str, ...]
    repeats: int
    scale: float
    seed: int
    output: Path | None
    profile: Path | None

    @property
    def workloads(self) -> dict[str, Workload]:
        """By name, in the order in which they run."""
        return {name: each.scaled(self.scale) for name, each in WORKLOADS.items() if name in self.names}


def run_workloads(model: str, settings: dict[str, Any], options: WorkloadOptions) -> None:
    """Measure, print a table and then one line of JSON.

    Args:
        model: as `LLM` takes it.
        settings: fields of `EngineConfig`.
        options: what to measure.

    Raises:
        EngineError: the model cannot be loaded or fails.
    """
    result: dict[str, Any] = {"engine": "deepseek-engine", "import_s": seconds_since_process_start()}
    started = time.perf_counter()
    llm = LLM(model, **settings)
    ready_s = round(time.perf_counter() - started, 2)
    parts = {name: round(seconds, 2) for name, seconds in llm.load_report.seconds_by_part.items()}
    result |= {"ready_s": ready_s, "ready_parts_s": parts, **_describe(llm), "scale": options.scale}
    run = WorkloadRun(llm, options.repeats, options.seed)
    result["warmup_s"] = round(run.warm_up(options.workloads), 2)
    for name, workload in options.workloads.items():
        result[name] = run.measure(name, workload)
        print(_line(name, workload, result[name]), flush=True)
    config, info, device = llm.config, llm.engine.info, torch.device(llm.engine.info.device)
    empty_model = _empty_model(config, info.dtype)
    if options.profile is not None:
        _write_profile(llm, options, len(empty_model.layers))
    result |= _memory(device)
    llm.close()
    del llm, run
    _free_memory(device)  # measuring the ceilings needs some
    dtypes = {parameter.dtype for parameter in empty_model.parameters() if parameter.dim() > 1}
    ceilings = measure_ceilings(device, sorted(dtypes, key=str))
    num_bytes = active_bytes(empty_model)
    _print_limits(ceilings, num_bytes)
    result |= {"ceilings": asdict(ceilings), "active_bytes": num_bytes}
    roofline = Roofline(empty_model, ceilings, result["kv_bytes_per_token"])
    for name, workload in options.workloads.items():
        result[name] |= _beside_floor(name, result[name], _floor(roofline, name, workload, config.max_num_seqs))
    result["wall_s"] = seconds_since_process_start()
    line = json.dumps(result)
    if options.output is not None:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    print(line)


def _describe(llm: LLM) -> dict[str, Any]:
    """What was loaded, for the result; the same is printed."""
    info, config = llm.engine.info, llm.config
    device = torch.device(info.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    variant = f"{info.dtype}+{config.quantization}" if config.quantization else info.dtype
    cache_tokens = info.num_blocks * info.block_size
    print(f"{config.model} as {variant} on {name}: weights {llm.load_report}")
    print(f"KV cache of {cache_tokens} tokens, {info.kv_cache_bytes / 1e9:.3f} GB")
    return {
        "spec": f"{config.model.removeprefix(PREFIX)}:{variant}",
        "device": name,
        "torch": torch.__version__,
        "settings": _unusual(config),
        "weight_bytes": info.weight_bytes,
        "weight_bytes_by_dtype": info.weight_bytes_by_dtype,
        "kv_cache_bytes": info.kv_cache_bytes,
        "kv_bytes_per_token": info.kv_cache_bytes / cache_tokens,
    }


def _unusual(config: EngineConfig) -> dict[str, Any]:
    """Settings that are not as they would be by themselves."""
    usual = EngineConfig(model=config.model)
    names = [name for name in config.__struct_fields__ if getattr(config, name) != getattr(usual, name)]
    return {name: getattr(config, name) for name in names}


def _write_profile(llm: LLM, options: WorkloadOptions, num_layers: int) -> None:
    assert options.profile is not None
    chosen = [each for name, each in options.workloads.items() if name in ("W1", "W2")]
    tables = [profile_decode(llm.engine, workload, num_layers) for workload in chosen]
    options.profile.write_text("\n".join(tables), encoding="utf-8")
    print(f"the kernels of decode steps are in {options.profile}")


def _empty_model(config: EngineConfig, dtype: str) -> Transformer:
    """The sizes and types of the model's parameters, without their memory."""
    model_config, source = open_model(config.model, torch.device("cpu"))
    with torch.device("meta"):
        model = Transformer(model_config, max_model_len=1, dtype=getattr(torch, dtype))
        store_quantized(model, config.quantization, source)
    return model


def _floor(roofline: Roofline, name: str, workload: Workload, max_num_seqs: int) -> float:
    """Milliseconds a token for W1 (weights alone, as such floors are usually given) and W2, else seconds of a call."""
    context = workload.prompt_tokens + workload.output_tokens // 2
    if name in ("W1", "W2"):
        return roofline.step_floor_ms(workload.num_requests, 0 if name == "W1" else context)
    batch_size = min(workload.num_requests, max_num_seqs)
    waves, steps = workload.num_requests / batch_size, workload.output_tokens - 1
    decode_s = waves * steps * roofline.step_floor_ms(batch_size, context) / 1e3
    return roofline.prefill_floor_s(workload.num_requests, workload.prompt_tokens) + decode_s


def _beside_floor(name: str, figures: dict[str, Any], floor: float) -> dict[str, float]:
    """The floor, and how near to it the workload came: 1 is as fast as the device can be."""
    unit = "ms a token" if name in ("W1", "W2") else "s a call"
    times: float | list[float] = figures["tpot_ms"] if "tpot_ms" in figures else figures["s"]
    measured = statistics.median(times) if isinstance(times, list) else times
    print(f"{name}: {measured:.4g} {unit}, the floor is {floor:.4g}: {floor / measured:.1%} of it")
    return {"floor": float(f"{floor:.5g}"), "share_of_floor": round(floor / measured, 4)}


def _line(name: str, workload: Workload, figures: dict[str, Any]) -> str:
    shape = f"{name} {workload.num_requests} x {workload.prompt_tokens} + {workload.output_tokens}"
    shown = " ".join(f"{key}={value}" for key, value in figures.items())
    return f"{shape:<20} {shown}"


def _print_limits(ceilings: Ceilings, num_bytes: dict[str, int]) -> None:
    rates = ", ".join(f"{name} {rate:.4g} T/s" for name, rate in ceilings.tera_ops.items())
    print(f"the device copies {ceilings.copy_gb_s:.4g} GB/s (read and written) and multiplies {rates}")
    parts = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in num_bytes.items())
    print(f"a token at batch 1 reads {sum(num_bytes.values()) / 1e6:.1f} MB of weights: {parts}")


def _memory(device: torch.device) -> dict[str, Any]:
    memory: dict[str, Any] = {"peak_rss_mib": round(peak_rss_mib())}
    if device.type == "cuda":
        memory["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    print("peak memory: " + ", ".join(f"{name} {value}" for name, value in memory.items()))
    return memory


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seconds_since_process_start() -> float | None:
    """Until now, the interpreter's own start included; None where there is no /proc."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 2)
