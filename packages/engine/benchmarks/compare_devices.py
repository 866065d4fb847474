"""Greedy text of one model on a GPU beside the CPU's, and where they part how close the choice was.

    python packages/engine/benchmarks/compare_devices.py --model smollm2

Two computations that round differently choose differently where two tokens are nearly as likely. So each pair of
answers that parts is shown with the gap, in the CPU's float32 log-probabilities, between the tokens chosen there.
"""

import argparse
from typing import Any, Final

from deepseek_engine import LLM, SamplingParams
from deepseek_engine.offline_request import RequestOutput

PROMPTS: Final = (
    "The capital of France is",
    "Once upon a time there was a little girl who",
    "def fibonacci(n):",
    "The three laws of motion are",
    "To make a good cup of tea, first",
    "In 1969, two astronauts",
    "The difference between a list and a tuple in Python is",
    "Dear Sir or Madam,",
)
FORMS: Final = (("float32", None), ("bfloat16", None), ("bfloat16", "int8"))


def answers(model: str, device: str, dtype: str, quantization: str | None, num_tokens: int) -> list[RequestOutput]:
    """Greedy answers to all prompts, together in one batch."""
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "quantization": quantization, "max_model_len": 1024}
    with LLM(model, **settings) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=20, ignore_eos=True)
        return llm.generate(list(PROMPTS), params, use_tqdm=False)


def gap(expected: RequestOutput, place: int, other_id: int) -> str:
    """How much likelier the CPU found its own token than the other one."""
    entry = (expected.outputs[0].logprobs or [])[place]
    likelihoods = {top.token_id: top.logprob for top in entry.top}
    if other_id not in likelihoods:
        return "more than the 20 likeliest"
    return f"{entry.logprob - likelihoods[other_id]:.4f}"


def main() -> None:
    """Print a line for each form, and one for each pair of answers that parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU")
    parser.add_argument("--num-tokens", type=int, default=64)
    options = parser.parse_args()
    expected = answers(options.model, "cpu", "float32", None, options.num_tokens)
    print("CPU, float32:", repr(expected[0].outputs[0].text[:100]))
    for dtype, quantization in FORMS:
        found = answers(options.model, options.device, dtype, quantization, options.num_tokens)
        parted: list[str] = []
        for prompt, ours, theirs in zip(PROMPTS, found, expected, strict=True):
            pairs = zip(ours.outputs[0].token_ids, theirs.outputs[0].token_ids, strict=True)
            place = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
            if place is not None:
                token_id = ours.outputs[0].token_ids[place]
                parted.append(f"  {prompt!r}: at token {place}, log-probabilities {gap(theirs, place, token_id)} apart")
        form = dtype if quantization is None else f"{quantization}, {dtype}"
        print(
            f"GPU, {form}: {len(PROMPTS) - len(parted)} of {len(PROMPTS)} answers equal", *parted, sep="\n", flush=True
        )


if __name__ == "__main__":
    main()
