"""Flags of `deepseek-bench offline` that time whole workloads, on a checkpoint or on a built-in shape."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepseek_engine.config import ATTENTION_BACKENDS, DEVICES, LINEAR_BACKENDS
from deepseek_engine.shapes import PREFIX, SHAPES

NAMES = ("W1", "W2", "W3", "W4")


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Declare them beside those of the plain benchmark; `--shape` or `--workloads` asks for this one."""
    group = parser.add_argument_group("workloads", "whole generate() calls; see docs/engine/benchmarking.md")
    group.add_argument("--shape", choices=list(SHAPES), help="random weights of these sizes instead of --model-path")
    group.add_argument("--workloads", nargs="+", choices=NAMES, metavar="W", help="of W1 W2 W3 W4; all with --shape")
    group.add_argument("--repeats", type=int, default=3, help="measured runs; two more of W1 and of first tokens")
    group.add_argument("--device", default="auto", choices=DEVICES)
    group.add_argument("--kv-cache-dtype", help="of the KV cache, where it is not that of the weights")
    group.add_argument("--attention-backend", choices=ATTENTION_BACKENDS, help="of GPUs; flash wants --block-size 256")
    group.add_argument("--block-size", type=int, help="tokens in a block of the KV cache")
    group.add_argument("--linear-backend", choices=LINEAR_BACKENDS, help="for INT8 weights of dense layers on a GPU")
    group.add_argument("--max-num-seqs", type=int, default=256)
    group.add_argument("--max-num-batched-tokens", type=int, help="tokens a step; the engine's own choice by default")
    group.add_argument("--scale", type=float, default=1.0, help="times requests and tokens: 0.05 is a quick try")
    group.add_argument("--seed", type=int, default=1, help="of the prompts")
    group.add_argument("--profile", type=Path, metavar="FILE", help="write the kernels of decode steps of W1 and W2")
    group.add_argument("--output", type=Path, metavar="FILE", help="append the line of JSON")


def wants_workloads(options: argparse.Namespace) -> bool:
    """Whether the flags ask for workloads."""
    return options.shape is not None or options.workloads is not None


def workload_command(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Callable[[], int]:
    """What the flags ask for, to be run."""
    for name in ("repeats", "max_num_seqs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < options.scale <= 1:
        parser.error("--scale must be above 0 and at most 1")
    settings: dict[str, Any] = {
        "dtype": options.dtype,
        "quantization": options.quantization,
        "device": options.device,
        "max_num_seqs": options.max_num_seqs,
        "enable_prefix_caching": False,
    }
    given = {
        "num_threads": options.threads,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "kv_cache_dtype": options.kv_cache_dtype,
        "attention_backend": options.attention_backend,
        "block_size": options.block_size,
        "linear_backend": options.linear_backend,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    model = f"{PREFIX}{options.shape}" if options.shape else options.model_path

    def measure() -> int:
        from deepseek_engine.bench.workload_report import WorkloadOptions, run_workloads  # torch, for this command only

        chosen = WorkloadOptions(
            names=tuple(options.workloads or NAMES),
            repeats=options.repeats,
            scale=options.scale,
            seed=options.seed,
            output=options.output,
            profile=options.profile,
        )
        run_workloads(model, settings, chosen)
        return 0

    return measure
