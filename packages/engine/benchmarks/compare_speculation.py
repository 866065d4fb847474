"""Times a model with and without speculation, side by side: tokens a second, acceptance, whether answers are equal.

    python packages/engine/benchmarks/compare_speculation.py --shape v3-lite --device cuda

Whole `LLM.generate` calls of equal random prompts for every way, as many requests at once as `--requests` says. Greedy
answers to them repeat themselves soon (of most models); with `--temperatures 1` they do not, so that there is hardly
anything to guess for `ngram`. The layer of the V3 shapes is made to guess right, so that what is shown is the most that
it can give; what it costs shows in the time of a step: at another acceptance, a token takes that over the tokens of a
step. `--always` adds each way without the adaptation to what pays. Prints a table with the time of a step by phase,
then one line of JSON.
"""

import argparse
import gc
import itertools
import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from deepseek_engine.bench.workloads import Workload
from deepseek_engine.config import DEVICES
from deepseek_engine.llm import LLM
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.shapes import PREFIX, SHAPES

Answers = list[list[int]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one workload, medians of the runs.

    Attributes:
        tpot_ms: time of a token after the first, of one request.
        out_tok_s: of all requests, first tokens and prompts included.
        acceptance: share of guesses that were right; None without guesses.
        off_share: steps of decodes without guesses as they do not pay, over all steps.
        overlap_share: steps launched while the one before was under way, over all steps.
        tokens_per_step: of one request, its prompt's steps included.
        step_ms: time of a step behind the first token.
        equal_answers: share that is, token by token, as it was without speculation.
        phase_us: time of a step by phase; `forward` and `sample`, or `wait`, include what the device takes.
    """

    tpot_ms: float
    out_tok_s: float
    acceptance: float | None
    off_share: float
    overlap_share: float
    tokens_per_step: float
    step_ms: float
    equal_answers: float
    phase_us: dict[str, float]


def measure(
    llm: LLM, workload: Workload, temperature: float, repeats: int, expected: Answers | None
) -> tuple[Figures, Answers]:
    """Time the workload on prompts that are the same for every engine; the last run's answers are compared."""
    generate(llm, workload, temperature, 0, min(workload.output_tokens, 64))
    first_s = statistics.median(generate(llm, workload, temperature, seed, 1)[0] for seed in range(1, repeats + 1))
    before, phases_before = llm.engine.step().stats, llm.engine.journal.totals().phase_seconds
    runs = [generate(llm, workload, temperature, seed, workload.output_tokens) for seed in range(1, repeats + 1)]
    after, phases = llm.engine.step().stats, llm.engine.journal.totals().phase_seconds
    total_s, answers = statistics.median(seconds for seconds, _ in runs), runs[-1][1]
    num_drafts = after.num_draft_tokens - before.num_draft_tokens
    all_steps = after.num_steps - before.num_steps
    num_steps = all_steps / repeats
    decoding_s = total_s - first_s
    expected = answers if expected is None else expected
    figures = Figures(
        tpot_ms=decoding_s / (workload.output_tokens - 1) * 1e3,
        out_tok_s=workload.num_requests * workload.output_tokens / total_s,
        acceptance=(after.num_accepted_tokens - before.num_accepted_tokens) / num_drafts if num_drafts else None,
        off_share=(after.num_off_steps - before.num_off_steps) / all_steps,
        overlap_share=(after.num_overlapped_steps - before.num_overlapped_steps) / all_steps,
        tokens_per_step=workload.output_tokens / num_steps,
        step_ms=decoding_s / max(num_steps - 1, 1) * 1e3,
        equal_answers=statistics.mean(one == other for one, other in zip(answers, expected, strict=True)),
        phase_us={name: (seconds - phases_before[name]) / all_steps * 1e6 for name, seconds in phases.items()},
    )
    return figures, answers


def generate(llm: LLM, workload: Workload, temperature: float, seed: int, num_tokens: int) -> tuple[float, Answers]:
    """Seconds of one call, and its answers."""
    shape = (workload.num_requests, workload.prompt_tokens)
    ids: list[list[int]] = np.random.default_rng(seed).integers(5, llm.engine.info.vocab_size - 5, size=shape).tolist()
    params = SamplingParams(
        temperature=temperature, seed=seed, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )  # fmt: skip
    began = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params, use_tqdm=False)
    return time.perf_counter() - began, [output.outputs[0].token_ids for output in outputs]


def describe(figures: Figures) -> str:
    """A line of the table."""
    values = asdict(figures)
    phases: dict[str, float] = values.pop("phase_us")
    shown = " ".join(f"{key}={value:.4g}" for key, value in values.items() if value is not None)
    return f"{shown} | us a step: " + " ".join(f"{name}={us:.0f}" for name, us in phases.items() if us >= 1)


def main() -> None:
    """Measure without speculation, then each number of guesses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="v3-lite", help="random weights of these sizes")
    parser.add_argument("--model-path", help="a checkpoint instead")
    parser.add_argument("--speculation", choices=["mtp", "ngram"], default="mtp")
    parser.add_argument("--num-speculative-tokens", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--always", action="store_true", help="each way without adaptation, too")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 32], metavar="N", help="at once")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0], metavar="T")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=["int8"])
    options = parser.parse_args()
    model = options.model_path or f"{PREFIX}{options.shape}"
    settings: dict[str, Any] = {
        "device": options.device, "dtype": options.dtype, "quantization": options.quantization,
        "max_num_seqs": max(options.requests), "enable_prefix_caching": False,
    }  # fmt: skip
    ways: list[tuple[str, dict[str, Any]]] = [("no speculation", {})]
    for count in options.num_speculative_tokens:
        chosen = {"speculation": options.speculation, "num_speculative_tokens": count}
        ways.append((f"{options.speculation}, {count} a step", chosen))
        if options.always:
            ways.append((f"{options.speculation}, always {count} a step", {**chosen, "adaptive_speculation": False}))
    expected: dict[tuple[int, float], Answers] = {}
    results: list[dict[str, object]] = []
    for name, chosen in ways:
        began = time.perf_counter()
        llm = LLM(model, **settings, **chosen)
        print(f"{model}, {name}: ready in {time.perf_counter() - began:.1f} s", flush=True)
        for temperature, num_requests in itertools.product(options.temperatures, options.requests):
            workload = Workload(num_requests, options.prompt_tokens, options.output_tokens)
            key = (num_requests, temperature)
            figures, answers = measure(llm, workload, temperature, options.repeats, expected.get(key))
            expected.setdefault(key, answers)
            print(f"  {num_requests} requests, temperature {temperature:g}: {describe(figures)}", flush=True)
            results.append({"way": name, "requests": num_requests, "temperature": temperature, **asdict(figures)})
        llm.close()
        del llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and options.device != "cpu" else "cpu"
    head = {"model": model, "device": device, "torch": torch.__version__, "settings": settings}
    print(json.dumps({**head, "repeats": options.repeats, "results": results}))


if __name__ == "__main__":
    main()
