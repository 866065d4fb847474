"""Prints the kernels that steps of any kind need and the steps rehearsed at a start do not; run by test_gpu_warm_up.py.

In a process of its own: kernels that the interpreter runs have no variants.
"""

import random
import sys
from collections.abc import Iterator

import torch
from torch.nn import functional

from deepseek_engine.config import EngineConfig
from deepseek_engine.gpu_build import GpuPlan, build_gpu_runner
from deepseek_engine.gpu_runner import GpuRunner
from deepseek_engine.gpu_warm_up import NEEDS, rehearsed_steps, warm_up_prompt
from deepseek_engine.kernels.sampling_rows import Needs
from deepseek_engine.kernels.triton.sampling import choose_tokens
from deepseek_engine.model_config import LatentConfig
from deepseek_engine.model_config.reader import parse_model_config
from deepseek_engine.model_runner import open_model, store_quantized
from deepseek_engine.models.mtp import with_mtp
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.shapes import shape_fields
from deepseek_engine.testing.kernel_variants import noted_variants
from deepseek_engine.weights import load_weights

MAX_MODEL_LEN = 512
NUM_STEPS = 60


def build(shape: str, quantization: str | None) -> tuple[GpuRunner, GpuPlan]:
    cpu = torch.device("cpu")
    guesses = shape == "tiny-v3"
    config = EngineConfig(
        model=f"shape:{shape}", max_num_seqs=96, max_num_batched_tokens=1024, num_kv_blocks=8,
        speculation="mtp" if guesses else "ngram",
    )  # fmt: skip
    model_config, source = open_model(config.model, cpu)
    if guesses:
        model_config = with_mtp(model_config, source.names(), config.model)
    model = Transformer(model_config, MAX_MODEL_LEN, torch.bfloat16)
    store_quantized(model, quantization, source)
    plan = GpuPlan(config, MAX_MODEL_LEN, torch.bfloat16, cpu)
    runner = build_gpu_runner(model, load_weights(model, source), plan)
    runner.set_sampling_kernels(choose_tokens)  # the device's, not the CPU's
    return runner, plan


def any_steps() -> Iterator[list[ScheduledSequence]]:
    rng = random.Random(0)
    while True:
        num_prompts, num_singles = rng.choice((0, 1, 1, 2, 3, 9)), rng.choice((0, 0, 1, 2, 5, 16, 33, 80))
        longest = 900 // max(num_prompts, 1)
        batch: list[ScheduledSequence] = []
        for _ in range(num_prompts):
            count = min(1 + int(2 ** rng.uniform(0, 9)), longest, MAX_MODEL_LEN)
            cached = min(rng.choice((0, 1, 100, 400)), MAX_MODEL_LEN - count)
            batch.append(warm_up_prompt(count, 16, cached=cached))
        drafts = (0,) * rng.choice((0, 0, 0, 2))
        batch += [warm_up_prompt(1, 16, cached=200, draft_token_ids=drafts) for _ in range(num_singles)]
        rng.shuffle(batch)
        if batch:
            yield batch


def guessed_for(num_tokens: int) -> Sequence:
    return warm_up_prompt(num_tokens, 16).sequence


def zeros_of_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    del bias
    return x.new_zeros(x.shape[0], weight.shape[0])


def main(shape: str, quantization: str | None) -> None:
    functional.linear = zeros_of_product  # sooner than its own
    with torch.inference_mode():
        runner, plan = build(shape, quantization)
    config = parse_model_config(shape_fields(plan.config.model), shape)
    attention = config.layers[0].attention
    latent = attention if isinstance(attention, LatentConfig) else None
    with noted_variants() as found:
        runner.rehearse(rehearsed_steps(plan.config, MAX_MODEL_LEN, plan.max_rows, latent), NEEDS)
        rehearsed = set(found)
        every_need = [
            Needs(adjust=adjust, random=random_, filter=filters, report=report)
            for adjust in (False, True)
            for random_, filters in ((False, False), (True, False), (True, True))
            for report in (False, True)
        ]
        steps = any_steps()
        runner.rehearse([next(steps) for _ in range(NUM_STEPS)], every_need)
        if runner.drafter is not None:
            for count in (1, 3, 17, 90):
                runner.drafter.draft_logits([guessed_for(length) for length in range(2, count + 2)])
    lines = [f"{len(rehearsed)} rehearsed", *(" ".join(each) for each in sorted(found - rehearsed))]
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1], None if sys.argv[2] == "none" else sys.argv[2])
