"""Multi-token prediction on a GpuRunner: its guesses are the CPU's, and no answer changes by them.

On the CPU in the interpreter, in which a step takes a second: a GPU tries more ways.
"""

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.gpu_runner import GpuRunner
from deepseek_engine.messages import EngineStats, Submit
from deepseek_engine.model_runner import ModelRunner, build_cpu_runner
from deepseek_engine.runner_protocol import Runner
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence, SequenceStatus
from deepseek_engine.testing.gpu import DEVICE, gpu_runner
from deepseek_engine.testing.mtp import V3, write_mtp_checkpoint

IS_CUDA: Final = DEVICE.type == "cuda"
SETTINGS: Final[dict[str, Any]] = {
    "num_kv_blocks": 24, "max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 64, "speculation": "mtp",
    "adaptive_speculation": False,
}  # fmt: skip
SMALL: Final = {
    "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
SHAPE: Final = DeepseekV3Config(**(V3 if IS_CUDA else V3 | SMALL))
TOLERANCE: Final = {"float32": 1e-5, "bfloat16": 4e-2}
"""Of a row's logits by their norm. bfloat16: three layers of roundings at 2**-8 in other places."""
MAX_FLIPS: Final = {"float32": 0, "bfloat16": 2}
"""Rows, of a dozen, that may go to another expert where two are nearly equal."""
TOKENS: Final = [(7 * i + i * i) % 256 for i in range(40)]


@pytest.fixture(scope="module")
def half_right(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose layer guesses right about every other time."""
    return str(
        write_mtp_checkpoint(
            tmp_path_factory.mktemp("right"), config=SHAPE, damping=0.1 if IS_CUDA else 0.02, rightness=0.9
        )
    )


def sequence(token_ids: list[int], blocks: list[int]) -> Sequence:
    made = Sequence("s", 0, list(token_ids), SamplingParams(temperature=0.0), 0)
    made.status, made.block_table = SequenceStatus.RUNNING, blocks
    return made


class Driver:
    """Runs the same steps on a runner, and notes logits of steps and of first guesses after each."""

    def __init__(self, runner: ModelRunner | GpuRunner) -> None:
        self._runner = runner
        self.logits: list[Tensor] = []
        self.drafts: list[list[int]] = []

    def step(self, *shares: tuple[Sequence, int, tuple[int, ...]]) -> None:
        batch = [ScheduledSequence(each, count, drafts) for each, count, drafts in shares]
        self.logits.append(self._runner.forward(batch).float().cpu())
        for each, count, _ in shares:
            each.num_computed_tokens += count
            if each.num_computed_tokens == len(each.token_ids):
                each.append(TOKENS[len(each.token_ids)])

    def look(self, *sequences: Sequence) -> None:
        assert self._runner.drafter is not None
        self.logits.append(self._runner.drafter.draft_logits(sequences).float().cpu())

    def draft(self, *wanted: tuple[Sequence, int]) -> None:
        assert self._runner.drafter is not None
        self.drafts += self._runner.drafter.draft(wanted)


def drive(runner: ModelRunner | GpuRunner) -> Driver:
    """Prompts in chunks, beside others and behind shared blocks; decodes alone, together and with drafts."""
    driver = Driver(runner)
    first, second = sequence(TOKENS[:19], [5, 2, 9]), sequence(TOKENS[3:5], [11, 6])
    driver.step((first, 17, ()), (second, 2, ()))
    shares = sequence(TOKENS[:19], [5, 3])  # the first one's first block
    shares.num_computed_tokens = 16
    driver.step((second, 1, (TOKENS[9], 7)), (first, 2, ()), (shares, 3, ()))
    driver.look(first, second, shares)
    driver.step((first, 1, ()))
    driver.step((shares, 1, ()), (first, 1, (8,)))
    driver.draft((first, 2), (shares, 0), (second, 1))
    return driver


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_guesses_and_steps_have_the_logits_of_the_cpu(tmp_path: Path, dtype: str) -> None:
    folder = write_mtp_checkpoint(tmp_path, config=SHAPE)
    config = EngineConfig(model=str(folder), dtype=dtype, num_speculative_tokens=2, **SETTINGS)
    cpu, gpu = build_cpu_runner(config), gpu_runner(config)
    assert gpu.info.kv_cache_bytes == cpu.info.kv_cache_bytes
    assert gpu.info.weight_bytes == cpu.info.weight_bytes
    assert "guesses" in gpu.info.kernels
    expected, actual = drive(cpu), drive(gpu)
    here, there = torch.cat(actual.logits), torch.cat(expected.logits)
    assert [each.shape for each in actual.logits] == [each.shape for each in expected.logits]
    errors = (here - there).norm(dim=1) / there.norm(dim=1)
    assert (errors > TOLERANCE[dtype]).sum() <= MAX_FLIPS[dtype], errors
    if dtype == "float32":
        assert actual.drafts == expected.drafts


BEGINNING: Final = TOKENS[: 19 if IS_CUDA else 6]
PROMPTS: Final = (BEGINNING, [42, 6], [*BEGINNING[:-1], 8])
GREEDY: Final = SamplingParams(temperature=0.0, max_tokens=20 if IS_CUDA else 7, ignore_eos=True)
DRAWN: Final = msgspec.structs.replace(GREEDY, temperature=0.6, seed=5, max_tokens=20 if IS_CUDA else 2)
LAST: Final = msgspec.structs.replace(DRAWN, top_p=0.9, logprobs=1) if IS_CUDA else DRAWN
PARAMS: Final = (GREEDY, DRAWN, LAST)
WAYS: Final[dict[str, dict[str, Any]]] = {
    "preempted": {"block_size": 4, "preempt_every_steps": 4},
    "two drafts": {"num_speculative_tokens": 2},
    "more drafts than a block holds, in chunks": {
        "num_speculative_tokens": 5, "block_size": 4, "max_num_batched_tokens": 9,
    },
    "without a prefix cache": {"enable_prefix_caching": False, "num_speculative_tokens": 3},
}  # fmt: skip
"""What the interpreter has time for comes first."""


def answers(config: EngineConfig, runner: Runner[Any]) -> tuple[list[list[int]], EngineStats]:
    """Of every prompt, the last one behind the others, when the prefix cache knows its beginning."""
    engine = Engine(config, runner)
    found: dict[str, list[int]] = {}
    for indices in ((0, 1), (2,)):
        for index in indices:
            found[str(index)] = []
            engine.add_request(Submit(str(index), list(PROMPTS[index]), PARAMS[index]))
        while engine.has_work:
            for delta in engine.step().deltas:
                assert delta.error is None
                found[delta.request_id] += delta.token_ids
    return list(found.values()), engine.step().stats


@pytest.mark.parametrize("way", WAYS if IS_CUDA else list(WAYS)[:1])
def test_no_answer_changes_and_guesses_are_accepted(half_right: str, way: str) -> None:
    settings = SETTINGS | WAYS[way]
    config = EngineConfig(model=half_right, dtype="float32", **settings)
    plain = EngineConfig(model=half_right, dtype="float32", **settings | {"speculation": None})
    expected, _ = answers(plain, build_cpu_runner(plain))
    found, stats = answers(config, gpu_runner(config))
    assert found == expected
    assert stats.num_accepted_tokens > 0
    assert (stats.num_preemptions > 0) == ("preempt_every_steps" in settings)
    assert (stats.num_prefix_hits > 0) == settings.get("enable_prefix_caching", True)
