"""How fast the engine itself is: prefill and decode rates and peak memory, without server and tokenizer."""

import json
import random
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineError
from deepseek_engine.messages import Submit
from deepseek_engine.model_runner import build_runner
from deepseek_engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Round:
    """One run: all prompts arrive at once; times in seconds."""

    batch_size: int
    prompt_tokens: int
    output_tokens: int
    all_first_tokens_s: float
    total_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens over the time until every sequence has its first token."""
        return self.batch_size * self.prompt_tokens / self.all_first_tokens_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after each sequence's first, over the time that they took; 0 if there are none."""
        decoded = self.batch_size * (self.output_tokens - 1)
        return decoded / (self.total_s - self.all_first_tokens_s) if decoded else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """All generated tokens over the whole time."""
        return self.batch_size * self.output_tokens / self.total_s


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of some runs."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} [{self.low:.1f}-{self.high:.1f}]"


def run_round(engine: Engine, batch_size: int, prompt_tokens: int, output_tokens: int, rng: random.Random) -> Round:
    """Greedy answers of a fixed length to random prompts; no two prompts are alike, so no cache helps."""
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    waiting_for_first: set[str] = set()
    start = time.perf_counter()
    for index in range(batch_size):
        ids = [rng.randrange(engine.info.vocab_size) for _ in range(prompt_tokens)]
        engine.add_request(Submit(str(index), ids, params))
        waiting_for_first.add(str(index))
    all_first_tokens_s = 0.0
    while engine.has_work:
        for delta in engine.step().deltas:
            if delta.error is not None:
                raise EngineError(delta.error)
            waiting_for_first.discard(delta.request_id)
        if not waiting_for_first and not all_first_tokens_s:
            all_first_tokens_s = time.perf_counter() - start
    total_s = time.perf_counter() - start
    return Round(batch_size, prompt_tokens, output_tokens, all_first_tokens_s, total_s)


def run_offline(
    config: EngineConfig, batch_sizes: list[int], prompt_tokens: int, output_tokens: int, num_runs: int
) -> None:
    """Measure each batch size, print a table and then one line of JSON."""
    started = time.perf_counter()
    runner = build_runner(config)
    engine = Engine(config, runner)
    load_s = time.perf_counter() - started
    rng = random.Random(0)  # noqa: S311 - prompts, not secrets
    run_round(engine, max(batch_sizes), prompt_tokens, min(output_tokens, 8), rng)
    print(f"{config.model} as {engine.info.dtype}, loaded in {load_s:.1f} s; {prompt_tokens} + {output_tokens} tokens")
    print(f"{'batch':>5} {'prefill tok/s':>24} {'decode tok/s':>24} {'output tok/s':>24}")
    results: list[dict[str, object]] = []
    for batch_size in batch_sizes:
        rounds = [run_round(engine, batch_size, prompt_tokens, output_tokens, rng) for _ in range(num_runs)]
        rates = {
            name: _spread([getattr(each, name) for each in rounds])
            for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "output_tokens_per_s")
        }
        print(f"{batch_size:>5} " + " ".join(f"{rate!s:>24}" for rate in rates.values()), flush=True)
        results.append({"batch_size": batch_size, **{name: asdict(rate) for name, rate in rates.items()}})
    peak_mib = peak_rss_mib()
    print(f"peak memory {peak_mib:.0f} MiB; weights {engine.info.weight_bytes / 2**20:.0f} MiB")
    summary = {
        "model": config.model,
        "dtype": engine.info.dtype,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "num_runs": num_runs,
        "load_s": round(load_s, 2),
        "ready_parts_s": {name: round(seconds, 2) for name, seconds in runner.load_report.seconds_by_part.items()},
        "peak_rss_mib": round(peak_mib),
        "results": results,
    }
    print(json.dumps(summary))


def _spread(values: list[float]) -> Spread:
    return Spread(round(statistics.median(values), 2), round(min(values), 2), round(max(values), 2))


def peak_rss_mib() -> float:
    """Greatest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
