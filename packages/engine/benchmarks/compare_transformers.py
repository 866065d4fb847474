"""Our engine beside transformers: same weights and machine, rounds taken in turn, so that the machine's drift cancels.

    python packages/engine/benchmarks/compare_transformers.py --dtype bfloat16 --runs 5

Greedy, random prompts, fixed lengths, no cache hits. transformers runs `generate` (its batch is static: all sequences
start and end together, which suits it here). Needs the test dependencies.
"""

import argparse
import json
import platform
import random
import statistics
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from deepseek_engine import __version__
from deepseek_engine.bench.offline import Round, run_round
from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.model_runner import build_runner
from deepseek_engine.model_source import resolve_model


def run_transformers(model: Any, batch_size: int, prompt_tokens: int, output_tokens: int, rng: random.Random) -> Round:
    """One static batch; the time of the first token is that of a separate run that ends there."""
    vocab_size = model.config.vocab_size
    prompts = torch.tensor([[rng.randrange(vocab_size) for _ in range(prompt_tokens)] for _ in range(batch_size)])

    def generate(count: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                eos_token_id=None,
                pad_token_id=0,
            )
        return time.perf_counter() - start

    return Round(batch_size, prompt_tokens, output_tokens, generate(1), generate(output_tokens))


def main() -> None:
    """Alternate the two engines, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    options = parser.parse_args()
    file = resolve_model("smollm2")
    config = EngineConfig(model="smollm2", dtype=options.dtype, max_num_seqs=16)
    engine = Engine(config, build_runner(config))
    dtype = getattr(torch, options.dtype)
    oracle = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype).eval()
    rng = random.Random(0)
    shape = (options.prompt_tokens, options.output_tokens)
    run_round(engine, 16, shape[0], 8, rng)
    run_transformers(oracle, 1, shape[0], 8, rng)

    print(f"SmolLM2-135M {options.dtype}, {shape[0]} + {shape[1]} tokens, {torch.get_num_threads()} threads, "
          f"deepseek-engine {__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
          f"Python {platform.python_version()}")  # fmt: skip
    print(f"{'batch':>5} {'rate, tokens/s':>22} {'ours':>24} {'transformers':>24} {'ratio by round':>22}")
    results: list[dict[str, Any]] = []
    for batch_size in (1, 16):
        pairs = [
            (run_round(engine, batch_size, *shape, rng), run_transformers(oracle, batch_size, *shape, rng))
            for _ in range(options.runs)
        ]
        for rate in ("prefill_tokens_per_s", "decode_tokens_per_s", "output_tokens_per_s"):
            ours = [getattr(pair[0], rate) for pair in pairs]
            theirs = [getattr(pair[1], rate) for pair in pairs]
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(
                f"{batch_size:>5} {rate:>22} {spread(ours):>24} {spread(theirs):>24} {spread(ratios, 2):>22}",
                flush=True,
            )
            results.append({"batch_size": batch_size, "rate": rate, "ours": ours, "transformers": theirs})
    print(json.dumps({"dtype": options.dtype, "results": results}))


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


if __name__ == "__main__":
    main()
