"""Guesses of n-grams on a GpuRunner with grouped queries: no answer changes; on a GPU their steps are graphs."""

from pathlib import Path
from typing import Final

from torch import Tensor

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.gpu_step import GpuStep
from deepseek_engine.messages import EngineStats, Submit
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_engine.testing.gpu import DEVICE, gpu_runner

IS_CUDA: Final = DEVICE.type == "cuda"
VOCAB: Final = 16
PROMPTS: Final = (list(range(VOCAB)), [9, 9, 9, 9], [3, 1, 4, 1, 5])
"""The first holds whatever its answer may begin with, so that there is something to guess."""
PARAMS: Final = SamplingParams(temperature=0.0, max_tokens=40 if IS_CUDA else 6, ignore_eos=True)


def answers(folder: Path, speculation: str | None) -> tuple[list[list[int]], EngineStats]:
    """Of all prompts at once."""
    config = EngineConfig(
        model=str(folder), dtype="float32", num_kv_blocks=32, block_size=8, max_model_len=64, max_num_seqs=4,
        max_num_batched_tokens=64, speculation=speculation, ngram_min=1, num_speculative_tokens=3,
        adaptive_speculation=False,
    )  # fmt: skip
    runner = gpu_runner(config)
    assert not runner.info.drafts_beside_prompts, "a chunk has a graph of its own"
    engine = Engine(config, runner)
    steps: list[GpuStep] = []
    compute = runner._decoder.hidden

    def hidden(step: GpuStep, x_TH: Tensor) -> Tensor:
        steps.append(step)
        return compute(step, x_TH)

    runner._decoder.hidden = hidden
    found: dict[str, list[int]] = {}
    for index, prompt in enumerate(PROMPTS):
        found[str(index)] = []
        engine.add_request(Submit(str(index), list(prompt), PARAMS))
    while engine.has_work:
        for delta in engine.step().deltas:
            assert delta.error is None
            found[delta.request_id] += delta.token_ids
    assert not (IS_CUDA and any(step.has_drafts for step in steps)), "launched one by one, without a graph"
    return list(found.values()), engine.step().stats


def test_no_answer_changes_by_guesses(tmp_path: Path) -> None:
    shape = TinyModel(num_hidden_layers=1, head_dim=16, num_attention_heads=2, num_key_value_heads=1, vocab_size=VOCAB)
    folder = write_tiny_checkpoint(tmp_path, shape)
    expected, _ = answers(folder, None)
    found, stats = answers(folder, "ngram")
    assert found == expected
    assert stats.num_draft_tokens > stats.num_steps, "several rows of several sequences"
