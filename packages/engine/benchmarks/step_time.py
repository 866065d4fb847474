"""How long one step of the model takes, apart from scheduling, sampling and HTTP.

    python packages/engine/benchmarks/step_time.py --model smollm2 --quantization int8

Decodes with `--context` tokens in the cache, and prefills from nothing, on random tokens. A step is `runner.forward`:
laying the batch out, the model, the logits. Prints the median and the least of several runs, then one line of JSON.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import ModelRunner, build_runner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence

BLOCK_SIZE = 16


def sequences(count: int, num_tokens: int, vocab_size: int, rng: random.Random) -> list[Sequence]:
    """Sequences of random tokens with blocks of their own."""
    blocks = -(-num_tokens // BLOCK_SIZE)
    made: list[Sequence] = []
    for index in range(count):
        token_ids = [rng.randrange(vocab_size) for _ in range(num_tokens)]
        sequence = Sequence("r", index, token_ids, SamplingParams(), sampling_seed=0)
        sequence.block_table = list(range(index * blocks, (index + 1) * blocks))
        made.append(sequence)
    return made


def times_ms(work: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of each run, after one that does not count."""
    work()
    measured: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        measured.append(1000 * (time.perf_counter() - start))
    return measured


def measure(runner: ModelRunner, name: str, batch: list[ScheduledSequence], runs: int) -> dict[str, object]:
    """One row of the table."""
    num_tokens = sum(s.num_new_tokens for s in batch)
    measured = times_ms(lambda: runner.forward(batch), runs)
    median, least = statistics.median(measured), min(measured)
    rate = 1000 * num_tokens / median
    print(f"{name:<16} median {median:8.2f} ms, least {least:8.2f} ms, {rate:8.1f} tokens/s")
    return {"step": name, "median_ms": median, "least_ms": least, "tokens_per_s": rate}


def main() -> None:
    """Measure decodes of growing batches, then prefills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    config = EngineConfig(
        model=options.model,
        dtype=options.dtype,
        quantization=options.quantization,
        num_threads=options.threads,
        num_kv_blocks=2048,
        block_size=BLOCK_SIZE,
    )
    runner, rng = build_runner(config), random.Random(0)
    kind = type(runner.model).__name__
    print(f"{options.model} {options.dtype} {options.quantization or ''} {kind}, {torch.get_num_threads()} threads")
    rows: list[dict[str, object]] = []
    for count in (1, 2, 4, 8, 16, 32):
        decoding = sequences(count, options.context, runner.info.vocab_size, rng)
        for sequence in decoding:
            sequence.num_computed_tokens = options.context - 1
        batch = [ScheduledSequence(sequence, 1) for sequence in decoding]
        rows.append(measure(runner, f"decode {count}", batch, options.runs))
    for length in (128, 1024):
        (sequence,) = sequences(1, length, runner.info.vocab_size, rng)
        rows.append(
            measure(runner, f"prefill {length}", [ScheduledSequence(sequence, length)], max(options.runs // 3, 3))
        )
    print(json.dumps({"model": options.model, "quantization": options.quantization, "runs_with": kind, "rows": rows}))


if __name__ == "__main__":
    main()
