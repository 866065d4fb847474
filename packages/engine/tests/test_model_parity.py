"""Logits and greedy tokens equal those of transformers on the same weights, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import ModelRunner, build_runner
from deepseek_engine.model_source import resolve_model
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step
from deepseek_engine.testing.checkpoints import TINY_MOE, TinyModel, write_tiny_checkpoint
from deepseek_engine.tokenizer import load_tokenizer

TOLERANCE = 1e-4
"""Two float32 implementations that add in different orders."""

SHAPES = {
    "llama": TinyModel(),
    "llama-tied-biased": TinyModel(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, seed=1),
    "llama-mha-odd-sizes": TinyModel(
        hidden_size=72, intermediate_size=101, num_attention_heads=3, num_key_value_heads=3, head_dim=24, seed=2
    ),
    "llama-linear-rope": TinyModel(rope_scaling={"rope_type": "linear", "factor": 4.0}, seed=3),
    "llama3-rope": TinyModel(
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        seed=4,
    ),
    "mixtral-16x2": TINY_MOE,
    "mixtral-16x2-fused": TinyModel(num_local_experts=16, fused_experts=True, seed=5),
    "mixtral-8x3": TinyModel(num_local_experts=8, num_experts_per_tok=3, seed=6),
}


@pytest.fixture(params=SHAPES, scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), SHAPES[request.param])


def build(checkpoint: Path) -> ModelRunner:
    return build_runner(EngineConfig(model=str(checkpoint), dtype="float32", num_kv_blocks=64))


def teacher_forced_logits(runner: ModelRunner, token_ids: list[int], chunk_size: int) -> torch.Tensor:
    """Logits at every position, the text fed in chunks."""
    sequence = Sequence("r", 0, token_ids, SamplingParams(), sampling_seed=0)
    sequence.block_table = list(range(5, 5 + -(-len(token_ids) // 16)))
    rows = []
    with torch.inference_mode():
        for start in range(0, len(token_ids), chunk_size):
            num_new = min(chunk_size, len(token_ids) - start)
            inputs = prepare_step([ScheduledSequence(sequence, num_new)], 16, torch.float32)
            rows.append(
                runner.model(
                    inputs.token_ids_T, inputs.positions_T, torch.arange(num_new), runner.cache, inputs.metadata
                )
            )
            sequence.num_computed_tokens += num_new
    return torch.cat(rows)


@pytest.mark.parametrize("chunk_size", [200, 33, 1])
def test_logits_equal_transformers_at_every_position(checkpoint: Path, chunk_size: int) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    token_ids = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(7)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([token_ids])).logits[0]
    actual = teacher_forced_logits(build(checkpoint), token_ids, chunk_size)
    assert (actual - expected).abs().max().item() < TOLERANCE


def greedy_tokens(runner: ModelRunner, prompt: list[int], count: int) -> list[int]:
    sequence = Sequence("r", 0, list(prompt), SamplingParams(temperature=0.0), sampling_seed=0)
    sequence.block_table = list(range(-(-(len(prompt) + count) // 16)))
    for _ in range(count):
        batch = [ScheduledSequence(sequence, len(sequence.token_ids) - sequence.num_computed_tokens)]
        token = runner.sample(runner.forward(batch), batch)[0].token_id
        sequence.num_computed_tokens = len(sequence.token_ids)
        sequence.token_ids.append(token)
    return sequence.token_ids[len(prompt) :]


def oracle_greedy_tokens(oracle: Any, prompt: list[int], count: int) -> list[int]:
    inputs = torch.tensor([prompt])
    with torch.inference_mode():
        output = oracle.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def test_64_greedy_tokens_equal_transformers(checkpoint: Path) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    runner = build(checkpoint)
    generator = torch.Generator().manual_seed(11)
    for length in (1, 16, 45):
        prompt = torch.randint(0, 256, (length,), generator=generator).tolist()
        assert greedy_tokens(runner, prompt, 64) == oracle_greedy_tokens(oracle, prompt, 64)


def test_smollm2_greedy_tokens_equal_transformers_on_the_dequantised_weights() -> None:
    file = resolve_model("smollm2")
    oracle = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    runner = build_runner(EngineConfig(model="smollm2", dtype="float32", num_kv_blocks=64))
    tokenizer = load_tokenizer("smollm2")
    for text in ("The capital of France is", "def fibonacci(n):\n", "<|im_start|>user\nHello!<|im_end|>\n"):
        prompt = tokenizer.encode(text)
        assert greedy_tokens(runner, prompt, 64) == oracle_greedy_tokens(oracle, prompt, 64)
