"""Choosing tokens on the GPU, by what the rows ask for: each step's launches in one graph, and `prepare` on the host.

`python packages/engine/benchmarks/kernel_sampling.py [--tune]`, on a CUDA device. The floor is one read of the logits.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from gpu_timing import bytes_line, time_us
from torch import Tensor

from deepseek_engine.gpu_sampler import GpuSampler
from deepseek_engine.kernels.sampling_rows import SamplingConfig
from deepseek_engine.kernels.triton.sampling import Warps, choose_tokens
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import Sequence

VOCAB = 102_400
BATCHES = (1, 32, 256)
ROTATED_BYTES = 120 << 20
"""More than the L2 holds, so that logits come from memory."""

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(),
    "top-k 50, top-p 0.9": SamplingParams(top_k=50, top_p=0.9),
    "top-p 0.9 of nearly flat logits": SamplingParams(top_p=0.9),
    "penalties": SamplingParams(repetition_penalty=1.1, frequency_penalty=0.2),
    "masks": SamplingParams(),
    "log-probabilities": SamplingParams(temperature=0.0, logprobs=5),
}


def lines() -> list[str]:
    """One line for each kind of batch and its size; torch's own ways beside them."""
    out: list[str] = []
    for rows, (kind, params) in itertools.product(BATCHES, KINDS.items()):
        spread = 0.5 if "flat" in kind else 3.0
        sampler, logits = _prepared(rows, kind, params), _logits(rows, spread)
        chosen = torch.empty(rows, dtype=torch.int64, device="cuda")
        us = time_us([_bound(sampler.sample, each, chosen) for each in logits])
        out.append(bytes_line(f"{kind}, {rows} rows", us, logits[0].nbytes))
    for rows in BATCHES:
        logits = _logits(rows, 3.0)
        us = time_us([_bound(torch.argmax, each, -1) for each in logits])
        out.append(bytes_line(f"torch: argmax, {rows} rows", us, logits[0].nbytes))
        us = time_us([_bound(_draw_by_torch, each) for each in logits])
        out.append(bytes_line(f"torch: softmax and exponential noise, {rows} rows", us, logits[0].nbytes))
    out.extend(_host_lines())
    return out


def tuning_lines() -> list[str]:
    """Alternatives to the sizes of tiles, for the batches that they matter to."""
    out: list[str] = []
    for rows, kind in itertools.product(BATCHES, ("greedy", "temperature", "top-k 50, top-p 0.9", "penalties")):
        logits = _logits(rows, 3.0)
        chosen = torch.empty(rows, dtype=torch.int64, device="cuda")
        for block, group, scan, choose in itertools.product((2048, 4096, 8192), (32, 64), (4, 8), (4, 8)):
            config, warps = SamplingConfig(block=block, group=group), Warps(scan=scan, choose=choose)
            sampler = _prepared(rows, kind, KINDS[kind], config, warps)
            us = time_us([_bound(sampler.sample, each, chosen) for each in logits], 10)
            name = f"{kind}, {rows} rows, block {block}, group {group}, warps {scan} and {choose}"
            out.append(bytes_line(name, us, logits[0].nbytes))
    for tile, whole in itertools.product((2048, 4096, 8192), (8, 16)):
        rows, kind = 256, "top-p 0.9 of nearly flat logits"
        logits = _logits(rows, 0.5)
        chosen = torch.empty(rows, dtype=torch.int64, device="cuda")
        sampler = _prepared(rows, kind, KINDS[kind], SamplingConfig(tile=tile), Warps(whole=whole))
        us = time_us([_bound(sampler.sample, each, chosen) for each in logits], 5)
        out.append(bytes_line(f"{kind}, {rows} rows, tile {tile}, warps {whole}", us, logits[0].nbytes))
    return out


def _prepared(
    rows: int, kind: str, params: SamplingParams, config: SamplingConfig | None = None, warps: Warps | None = None
) -> GpuSampler:
    sampler = GpuSampler(VOCAB, rows, torch.device("cuda"), config)
    if warps is not None:
        sampler.set_kernels(lambda *args: choose_tokens(*args, warps))
    sequences = [Sequence("r", row, list(range(512)), params, row) for row in range(rows)]
    if kind == "masks":
        random = np.random.default_rng(0)
        for sequence in sequences:
            sequence.token_mask = random.integers(-(2**31), 2**31, VOCAB // 32, dtype=np.int32)
    sampler.prepare(sequences)
    return sampler


def _logits(rows: int, spread: float) -> list[Tensor]:
    count = min(max(2, ROTATED_BYTES // (rows * VOCAB * 4)), 64)
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(rows, VOCAB, device="cuda", generator=generator) * spread for _ in range(count)]


def _bound(function: Callable[..., object], *args: object) -> Callable[[], object]:
    return lambda: function(*args)


def _draw_by_torch(logits: Tensor) -> Tensor:
    probs = logits.softmax(dim=-1)
    return probs.div_(torch.empty_like(probs).exponential_()).argmax(dim=-1)


def _host_lines(repeats: int = 200) -> list[str]:
    out: list[str] = []
    for rows, kind in itertools.product(BATCHES, ("greedy", "top-k 50, top-p 0.9", "penalties", "masks")):
        sampler = _prepared(rows, kind, KINDS[kind])
        sequences = [Sequence("r", row, list(range(512)), KINDS[kind], row) for row in range(rows)]
        chosen, logits = torch.empty(rows, dtype=torch.int64, device="cuda"), _logits(rows, 3.0)[0]
        seconds: list[float] = []
        for _ in range(repeats):
            begin = time.perf_counter()
            sampler.prepare(sequences)
            seconds.append(time.perf_counter() - begin)
            sampler.sample(logits, chosen)
            sampler.send()
            for sequence, token in zip(sequences, sampler.collect(), strict=True):
                sequence.append(token.token_id)
        out.append(f"{f'prepare on the host: {kind}, {rows} rows':<64} {sorted(seconds)[repeats // 2] * 1e6:>9.1f} us")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="time alternatives to the sizes of tiles instead")
    print("\n".join(tuning_lines() if parser.parse_args().tune else lines()))
