"""Whole `LLM.generate` calls on random prompts: the workloads that our numbers beside vLLM's are made of.

W1 is one user, W2 a small batch, W3 many requests at once, W4 long prompts. A call is timed from outside, with fresh
prompts each time, greedy, to a fixed length, without text and without a prefix cache, so that any engine with a
`generate` can be timed in the same way. TTFT is the time of a call for one token; TPOT is what the call for all tokens
takes longer, over the tokens after the first.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import torch

from deepseek_engine.bench.device_watch import DeviceWatch
from deepseek_engine.llm import LLM
from deepseek_engine.offline_request import RequestOutput
from deepseek_engine.sampling_params import SamplingParams

MORE_SHORT_RUNS: Final = 2
"""Runs of W1 and of first tokens beyond the others': they take no time and vary most."""
WARMUP_TOKENS: Final = 24
_MARGIN: Final = 5
"""Token ids at both ends of the vocabulary that prompts leave out: special tokens of real models are there."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are submitted together, all alike."""

    num_requests: int
    prompt_tokens: int
    output_tokens: int

    def scaled(self, scale: float) -> Self:
        """All three numbers times `scale`, with at least one request and enough tokens to be measured."""
        least_output = min(self.output_tokens, 2)
        return replace(
            self,
            num_requests=max(round(self.num_requests * scale), 1),
            prompt_tokens=max(round(self.prompt_tokens * scale), 1),
            output_tokens=max(round(self.output_tokens * scale), least_output),
        )


WORKLOADS: Final = {
    "W1": Workload(1, 128, 256),
    "W2": Workload(32, 128, 256),
    "W4": Workload(16, 4096, 1),
    "W3": Workload(512, 512, 256),
}
"""In the order in which they run: W3 heats the card."""


class WorkloadRun:
    """Times workloads on one engine.

    Args:
        llm: the engine.
        repeats: measured runs of each.
        seed: of the prompts.
    """

    def __init__(self, llm: LLM, repeats: int, seed: int) -> None:
        self._llm, self._repeats = llm, repeats
        self._rng = np.random.default_rng(seed)
        self._device = torch.device(llm.engine.info.device)

    def warm_up(self, workloads: dict[str, Workload]) -> float:
        """Run each once, with few tokens, so that nothing is compiled or captured later; returns the seconds."""
        start = time.perf_counter()
        for workload in workloads.values():
            self._generate(replace(workload, output_tokens=min(workload.output_tokens, WARMUP_TOKENS)))
        return time.perf_counter() - start

    def measure(self, name: str, workload: Workload) -> dict[str, Any]:
        """Figures of one workload, with every repeat; what they are called is the same for every engine."""
        kinds: dict[str, Callable[[Workload], dict[str, Any]]] = {"W3": self._throughput, "W4": self._prefill}
        return kinds.get(name, self._latency)(workload)

    def _latency(self, workload: Workload) -> dict[str, Any]:
        more = self._repeats + MORE_SHORT_RUNS
        first = [self._generate(replace(workload, output_tokens=1))[0] for _ in range(more)]
        whole = [self._generate(workload) for _ in range(more if workload.num_requests == 1 else self._repeats)]
        ttft_s, total_s = statistics.median(first), statistics.median(seconds for seconds, _ in whole)
        return {
            "ttft_ms": round(ttft_s * 1e3, 3),
            "ttft_all": [round(each * 1e3, 3) for each in first],
            "tpot_ms": round((total_s - ttft_s) / (workload.output_tokens - 1) * 1e3, 4),
            "total_s": [round(seconds, 4) for seconds, _ in whole],
            "out_tok_s": round(workload.num_requests * workload.output_tokens / total_s, 1),
            "distinct": _distinct(whole[-1][1]),
        }

    def _throughput(self, workload: Workload) -> dict[str, Any]:
        runs = sorted(self._watched(workload), key=lambda run: run["s"])
        return {**runs[len(runs) // 2], "all_s": [run["s"] for run in runs]}

    def _watched(self, workload: Workload) -> Iterator[dict[str, Any]]:
        for _ in range(self._repeats):
            with DeviceWatch(self._device) as watch:
                seconds, outputs = self._generate(workload)
            num_output = workload.num_requests * workload.output_tokens
            num_total = num_output + workload.num_requests * workload.prompt_tokens
            yield {
                "s": round(seconds, 4),
                "out_tok_s": round(num_output / seconds, 1),
                "total_tok_s": round(num_total / seconds, 1),
                "distinct": _distinct(outputs),
                **watch.summary,
            }

    def _prefill(self, workload: Workload) -> dict[str, Any]:
        times = [self._generate(workload)[0] for _ in range(self._repeats)]
        median_s = statistics.median(times)
        return {
            "s": [round(each, 4) for each in times],
            "prompt_tok_s": round(workload.num_requests * workload.prompt_tokens / median_s, 1),
            "mean_req_ms": round(median_s / workload.num_requests * 1e3, 3),
        }

    def _generate(self, workload: Workload) -> tuple[float, list[RequestOutput]]:
        """Seconds of one call, and what it gave."""
        vocab_size = self._llm.engine.info.vocab_size
        shape = (workload.num_requests, workload.prompt_tokens)
        ids: list[list[int]] = self._rng.integers(_MARGIN, vocab_size - _MARGIN, size=shape).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=workload.output_tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in ids], params, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert all(len(output.outputs[0].token_ids) == workload.output_tokens for output in outputs)
        return seconds, outputs


def _distinct(outputs: list[RequestOutput]) -> float:
    """Different tokens of a step, on average: whether the sequences have collapsed onto one."""
    steps = zip(*(output.outputs[0].token_ids for output in outputs), strict=True)
    return round(statistics.mean(len(set(step)) for step in steps), 1)
