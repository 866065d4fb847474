"""What a step costs besides the model: scheduling, appending tokens, building deltas and stats, encoding the message.

    python packages/engine/benchmarks/scheduler_overhead.py --sequences 1 64 256 512

Runs the real engine on a runner that computes nothing, and times `schedule()`, `commit()`, and a whole `Engine.step()`
with the encoding of what it says, the runner's own time taken off. Prints median and 99th percentile, in microseconds
of CPU time a step, which other processes do not add to; then one line of JSON. `step` is all of it. `--overlap` gives
the runner a launcher, as one for a GPU has; `commit` is then that of launched steps.

    decode     every sequence decodes, without a prefix cache
    cached     the same with one, which enters a block of each sequence every 16 steps
    mixed      the same beside one long prompt after the other, in chunks of what the budget has left
    churn      as `cached`, while a prompt of 200 tokens comes each step, gets one token and ends
    logprobs   as `cached`, with the log-probabilities of each token and five others
"""

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import ParamSpec, TypeVar

from idle_runner import IdleLauncher, IdleRunner

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.framing import encode_frame
from deepseek_engine.messages import Submit
from deepseek_engine.runner_protocol import RunnerInfo
from deepseek_engine.sampling_params import SamplingParams

BLOCK_SIZE = 16
VOCAB_SIZE = 50_000
PROMPT_TOKENS = 200
LONG_PROMPT_TOKENS = 6000
SCENARIOS = ("decode", "cached", "mixed", "churn", "logprobs")
PARTS = ("schedule", "commit", "encode", "step")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Stopwatch:
    """Adds up the time spent in what it wraps, until it is read."""

    def __init__(self) -> None:
        self._total_s = 0.0

    def wrap(self, work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """The same function, timed."""

        def timed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            start = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                self._total_s += time.thread_time() - start

        return timed

    def take_us(self) -> float:
        """Microseconds since the last call."""
        total_s, self._total_s = self._total_s, 0.0
        return total_s * 1e6


class Load:
    """An engine whose sequences decode for as long as it is stepped, and what comes meanwhile."""

    def __init__(self, scenario: str, num_sequences: int, num_steps: int, *, overlap: bool) -> None:
        answer_tokens = num_steps + 2 * num_sequences + 100  # the first ones decode while the last ones prefill
        num_tokens = num_sequences * (PROMPT_TOKENS + answer_tokens + BLOCK_SIZE) + 2 * LONG_PROMPT_TOKENS
        info = RunnerInfo(
            max_model_len=PROMPT_TOKENS + answer_tokens + LONG_PROMPT_TOKENS,
            vocab_size=VOCAB_SIZE,
            num_blocks=num_tokens // BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            dtype="float32",
            device="cpu",
            weight_bytes=0,
            kv_cache_bytes=0,
        )
        config = EngineConfig(
            model="idle",
            max_num_seqs=num_sequences + 1,
            max_num_batched_tokens=2048 + num_sequences,
            enable_prefix_caching=scenario != "decode",
        )
        self.runner = IdleRunner(info)
        if overlap:
            self.runner.launcher = IdleLauncher(self.runner)
        self.engine = Engine(config, self.runner)
        self._scenario = scenario
        self._rng, self._ids = random.Random(0), count()
        logprobs = 5 if scenario == "logprobs" else None
        params = SamplingParams(max_tokens=answer_tokens, seed=1, logprobs=logprobs)
        beginning = {self._submit(PROMPT_TOKENS, params) for _ in range(num_sequences)}
        while beginning:
            beginning -= {delta.request_id for delta in self.engine.step().deltas}
        self._num_decoding = self.num_running = num_sequences

    def arrive(self) -> None:
        """What comes before a step: nothing, or a prompt that gets one token."""
        if self._num_decoding == self.num_running and self._scenario in ("mixed", "churn"):
            length = LONG_PROMPT_TOKENS if self._scenario == "mixed" else PROMPT_TOKENS
            self._submit(length, SamplingParams(max_tokens=1, seed=1))

    def _submit(self, num_tokens: int, params: SamplingParams) -> str:
        request_id = f"{next(self._ids):032x}/0"  # as long as the server's
        ids = [self._rng.randrange(VOCAB_SIZE) for _ in range(num_tokens)]
        self.engine.inbox.append(Submit(request_id, ids, params, eos_token_ids=(1,)))
        return request_id


def measure(scenario: str, num_sequences: int, num_steps: int, *, overlap: bool = False) -> dict[str, float]:
    """Microseconds a step of each part: `PART_p50` and `PART_p99`."""
    load = Load(scenario, num_sequences, num_steps, overlap=overlap)
    scheduler, runner = load.engine._scheduler, load.runner  # noqa: SLF001 - what is measured
    watches = {name: Stopwatch() for name in ("schedule", "commit", "runner")}
    scheduler.schedule = watches["schedule"].wrap(scheduler.schedule)
    scheduler.commit = watches["commit"].wrap(scheduler.commit)
    scheduler.commit_launched = watches["commit"].wrap(scheduler.commit_launched)
    runner.forward, runner.sample = watches["runner"].wrap(runner.forward), watches["runner"].wrap(runner.sample)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    gc.collect()
    gc.freeze()  # as the core does after loading
    for _ in range(num_steps):
        load.arrive()
        start = time.thread_time()
        outputs = load.engine.step()
        stepped = time.thread_time()
        frame = encode_frame(outputs)
        encoded = time.thread_time()
        assert len(frame) > num_sequences
        load.num_running = outputs.stats.num_running
        took = {name: watch.take_us() for name, watch in watches.items()}
        took["encode"] = 1e6 * (encoded - stepped)
        took["step"] = 1e6 * (encoded - start) - took.pop("runner")
        for name in PARTS:
            times[name].append(took[name])
    gc.unfreeze()
    row: dict[str, float] = {}
    for name, values in times.items():
        row[f"{name}_p50"] = round(statistics.median(values), 1)
        row[f"{name}_p99"] = round(statistics.quantiles(values, n=100)[98], 1)
    return row


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 64, 256, 512], metavar="N")
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--steps", type=int, default=600, help="measured of each; at least 2")
    parser.add_argument("--overlap", action="store_true", help="launch each step while the one before is under way")
    options = parser.parse_args()
    print(f"microseconds of CPU time a step, median / p99 of {options.steps}; Python {platform.python_version()}")
    print(f"{'':<14}" + "".join(f"{name:>18}" for name in PARTS))
    rows: list[dict[str, object]] = []
    for scenario in options.scenarios:
        for num_sequences in options.sequences:
            row = measure(scenario, num_sequences, options.steps, overlap=options.overlap)
            cells = (f"{row[f'{name}_p50']:.0f} / {row[f'{name}_p99']:.0f}" for name in PARTS)
            print(f"{scenario:<9}{num_sequences:>5}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
            rows.append({"scenario": scenario, "sequences": num_sequences, **row})
    print(
        json.dumps(
            {"steps": options.steps, "overlap": options.overlap, "python": platform.python_version(), "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
