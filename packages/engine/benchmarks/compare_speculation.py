"""Times a model with and without speculation, side by side: tokens a second, acceptance, whether answers are equal.

    python packages/engine/benchmarks/compare_speculation.py --shape v3-lite --device cuda

Whole `LLM.generate` calls as `deepseek-bench offline` makes them (W1: one request, W2: 32, W3: 512), the same prompts
for every way, greedy. The layer of the V3 shapes is made to guess right, so that what is shown is the most that it can
give; what it costs shows in the time of a step: at another acceptance, a token takes that over the tokens of a step.
Prints a table, then one line of JSON.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from deepseek_engine.bench.workloads import WORKLOADS, Workload
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
        tokens_per_step: of one request, its prompt's steps included.
        step_ms: time of a step behind the first token.
        equal_answers: share that is, token by token, as it was without speculation.
    """

    tpot_ms: float
    out_tok_s: float
    acceptance: float | None
    tokens_per_step: float
    step_ms: float
    equal_answers: float


def measure(llm: LLM, workload: Workload, repeats: int, expected: Answers | None) -> tuple[Figures, Answers]:
    """Time the workload on prompts that are the same for every engine; the last run's answers are compared."""
    generate(llm, workload, 0, min(workload.output_tokens, 24))
    first_s = statistics.median(generate(llm, workload, seed, 1)[0] for seed in range(1, repeats + 1))
    before = llm.engine.step().stats
    runs = [generate(llm, workload, seed, workload.output_tokens) for seed in range(1, repeats + 1)]
    after = llm.engine.step().stats
    total_s, answers = statistics.median(seconds for seconds, _ in runs), runs[-1][1]
    num_drafts = after.num_draft_tokens - before.num_draft_tokens
    num_steps = (after.num_steps - before.num_steps) / repeats
    decoding_s = total_s - first_s
    expected = answers if expected is None else expected
    figures = Figures(
        tpot_ms=decoding_s / (workload.output_tokens - 1) * 1e3,
        out_tok_s=workload.num_requests * workload.output_tokens / total_s,
        acceptance=(after.num_accepted_tokens - before.num_accepted_tokens) / num_drafts if num_drafts else None,
        tokens_per_step=workload.output_tokens / num_steps,
        step_ms=decoding_s / max(num_steps - 1, 1) * 1e3,
        equal_answers=statistics.mean(one == other for one, other in zip(answers, expected, strict=True)),
    )
    return figures, answers


def generate(llm: LLM, workload: Workload, seed: int, num_tokens: int) -> tuple[float, Answers]:
    """Seconds of one call, and its answers."""
    shape = (workload.num_requests, workload.prompt_tokens)
    ids: list[list[int]] = np.random.default_rng(seed).integers(5, llm.engine.info.vocab_size - 5, size=shape).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params, use_tqdm=False)
    return time.perf_counter() - began, [output.outputs[0].token_ids for output in outputs]


def main() -> None:
    """Measure without speculation, then each number of guesses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="v3-lite", help="random weights of these sizes")
    parser.add_argument("--model-path", help="a checkpoint instead")
    parser.add_argument("--speculation", choices=["mtp", "ngram"], default="mtp")
    parser.add_argument("--num-speculative-tokens", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--workloads", nargs="+", choices=["W1", "W2", "W3"], default=["W1", "W2"])
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each")
    parser.add_argument("--scale", type=float, default=1.0, help="times requests and tokens: 0.05 is a quick try")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=["int8"])
    parser.add_argument("--max-num-seqs", type=int, default=32)
    options = parser.parse_args()
    model = options.model_path or f"{PREFIX}{options.shape}"
    settings: dict[str, Any] = {
        "device": options.device, "dtype": options.dtype, "quantization": options.quantization,
        "max_num_seqs": options.max_num_seqs, "enable_prefix_caching": False,
    }  # fmt: skip
    ways: list[int | None] = [None, *options.num_speculative_tokens]
    expected: dict[str, Answers] = {}
    results: list[dict[str, object]] = []
    for count in ways:
        chosen = {} if count is None else {"speculation": options.speculation, "num_speculative_tokens": count}
        began = time.perf_counter()
        llm = LLM(model, **settings, **chosen)
        name = "no speculation" if count is None else f"{options.speculation}, {count} a step"
        print(f"{model}, {name}: ready in {time.perf_counter() - began:.1f} s", flush=True)
        for workload_name in options.workloads:
            workload = WORKLOADS[workload_name].scaled(options.scale)
            figures, answers = measure(llm, workload, options.repeats, expected.get(workload_name))
            expected.setdefault(workload_name, answers)
            shown = " ".join(f"{key}={value:.4g}" for key, value in asdict(figures).items() if value is not None)
            print(f"  {workload_name} {shown}", flush=True)
            results.append({"way": name, "workload": workload_name, **asdict(figures)})
        llm.close()
        del llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and options.device != "cpu" else "cpu"
    head = {"model": model, "device": device, "torch": torch.__version__, "settings": settings}
    print(json.dumps({**head, "repeats": options.repeats, "scale": options.scale, "results": results}))


if __name__ == "__main__":
    main()
