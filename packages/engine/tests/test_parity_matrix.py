"""Every family and configuration against its oracle: float32 logits at every position, and 64 greedy tokens.

The oracle is transformers with eager attention on the same weights, and for DeepSeek MoE-16B, which transformers lacks,
a slow reference of our own. What was measured is printed as a table.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    JetMoeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.deepseek_v32 import DeepseekV32Config

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import ModelRunner, build_runner, open_checkpoint
from deepseek_engine.model_source import resolve_model
from deepseek_engine.testing import deepseek_moe_reference
from deepseek_engine.testing.checkpoints import VOCAB_SIZE
from deepseek_engine.testing.families import TINY, TINY_LATENT, build_oracle, write_family_checkpoint
from deepseek_engine.testing.logits import BLOCK_SIZE, engine_logits, sequence_of
from deepseek_engine.tokenizer import load_tokenizer

TOLERANCE: Final = 1e-4
"""Two float32 implementations that add in different orders."""
NUM_TOKENS: Final = 120
NUM_GREEDY: Final = 64

Oracle = Callable[[list[int]], Tensor]
"""Token ids to logits at every position."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the matrix."""

    config: PreTrainedConfig | dict[str, Any]
    fused_experts: bool = False
    max_model_len: int = 512
    oracle_changes: dict[str, Any] = field(default_factory=dict)
    """Of the config, where transformers does not do what the checkpoint asks for."""
    mtp_layer: bool = False


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
SHORT_FACTOR = [1.0 + 0.1 * i for i in range(8)]
LONG_FACTOR = [1.0 + 0.7 * i for i in range(8)]


def longrope(short: list[float], long: list[float], **others: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 256,
        **others,
    }


PHI_MSCALES = {"short_mscale": 1.1, "long_mscale": 1.25}
MLA = {**TINY_LATENT, "num_hidden_layers": 3}
V3 = {**MLA, "n_group": 4, "topk_group": 2, "rope_parameters": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0}}
V32 = {**V3, "index_n_heads": 16, "index_head_dim": 16}
MOE_16B = {
    "architectures": ["DeepseekForCausalLM"],
    "model_type": "deepseek",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "attention_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

CASES: Final[dict[str, Case]] = {
    "llama": Case(LlamaConfig(**TINY)),
    "llama tied, biases": Case(LlamaConfig(**TINY, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama odd sizes, no GQA": Case(
        LlamaConfig(
            **TINY | {"hidden_size": 72, "intermediate_size": 101, "num_attention_heads": 3, "num_key_value_heads": 3}
        )
    ),
    "llama head_dim 24, GQA 4:1": Case(LlamaConfig(**TINY | {"num_key_value_heads": 1}, head_dim=24)),
    "llama linear rope": Case(LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "factor": 4.0})),
    "llama dynamic rope": Case(LlamaConfig(**TINY, rope_parameters={"rope_type": "dynamic", "factor": 4.0})),
    "llama llama3 rope": Case(LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE)),
    "llama yarn rope": Case(
        LlamaConfig(
            **TINY, rope_parameters={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
        )
    ),
    "llama longrope, short": Case(
        LlamaConfig(**TINY, rope_parameters=longrope(SHORT_FACTOR, LONG_FACTOR)), max_model_len=256
    ),
    "llama longrope, long": Case(
        LlamaConfig(**TINY, rope_parameters=longrope(SHORT_FACTOR, LONG_FACTOR)),
        # transformers takes the long factors only once a text is longer than the original context.
        oracle_changes={"rope_parameters": longrope(LONG_FACTOR, LONG_FACTOR)},
    ),
    "qwen2": Case(Qwen2Config(**TINY)),
    "qwen2 tied, GQA 4:1": Case(Qwen2Config(**TINY | {"num_key_value_heads": 1}, tie_word_embeddings=True)),
    "qwen3": Case(Qwen3Config(**TINY, head_dim=24)),
    "qwen3 tied, biases": Case(Qwen3Config(**TINY, head_dim=16, attention_bias=True, tie_word_embeddings=True)),
    "mixtral 16x2": Case(MixtralConfig(**TINY, num_local_experts=16)),
    "mixtral 8x3 fused": Case(MixtralConfig(**TINY, num_local_experts=8, num_experts_per_tok=3), fused_experts=True),
    "phimoe 16x2": Case(PhimoeConfig(**TINY, router_jitter_noise=0.8)),
    "phimoe biases, fused": Case(
        PhimoeConfig(**TINY, router_jitter_noise=0.1, attention_bias=True, lm_head_bias=True), fused_experts=True
    ),
    "phimoe longrope, short": Case(
        PhimoeConfig(**TINY, rope_parameters=longrope(SHORT_FACTOR, LONG_FACTOR, **PHI_MSCALES)), max_model_len=256
    ),
    "phimoe longrope, long": Case(
        PhimoeConfig(**TINY, rope_parameters=longrope(SHORT_FACTOR, LONG_FACTOR, **PHI_MSCALES)),
        oracle_changes={"rope_parameters": longrope(LONG_FACTOR, LONG_FACTOR, short_mscale=1.25, long_mscale=1.25)},
    ),
    "jetmoe 16x2": Case(JetMoeConfig(**TINY, kv_channels=16, num_local_experts=16)),
    "jetmoe 8x3 untied": Case(
        JetMoeConfig(
            **TINY,
            kv_channels=24,
            num_local_experts=8,
            num_experts_per_tok=3,
            tie_word_embeddings=False,
            rms_norm_eps=1e-3,
        )
    ),
    "deepseek moe-16b": Case(MOE_16B),
    "deepseek moe-16b normed, biases": Case(
        MOE_16B
        | {"norm_topk_prob": True, "attention_bias": True, "moe_layer_freq": 2, "first_k_dense_replace": 0}
        | {"num_key_value_heads": 2, "n_shared_experts": None}
    ),
    "deepseek v2-lite greedy, yarn": Case(DeepseekV2Config(**MLA | {"q_lora_rank": None}, rope_parameters=YARN_ROPE)),
    "deepseek v2 group-limited": Case(
        DeepseekV2Config(**MLA, topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=4.0)
    ),
    "deepseek v2 biases, fused": Case(DeepseekV2Config(**MLA, attention_bias=True, mlp_bias=True), fused_experts=True),
    "deepseek v2-lite biases": Case(DeepseekV2Config(**MLA | {"q_lora_rank": None}, attention_bias=True)),
    "deepseek v3 groups, yarn, mtp": Case(DeepseekV3Config(**V3), mtp_layer=True),
    "deepseek v3 one group, fused": Case(
        DeepseekV3Config(**MLA, n_group=1, topk_group=1, norm_topk_prob=False), fused_experts=True
    ),
    "deepseek v3 half-split, biases": Case(
        DeepseekV3Config(
            **MLA | {"q_lora_rank": None}, n_group=2, topk_group=1, rope_interleave=False, attention_bias=True
        )
    ),
    "deepseek v3.2 below index_topk": Case(DeepseekV32Config(**V32, index_topk=512)),
    "deepseek v3.2 above index_topk": Case(DeepseekV32Config(**V32, index_topk=20), fused_experts=True),
    "deepseek v3.2 crossing index_topk": Case(DeepseekV32Config(**V32, index_topk=100)),
}

measured: dict[str, list[float]] = {}
"""Largest differences of logits by case: whole, in chunks, while decoding."""


@pytest.fixture(params=CASES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, ModelRunner]:
    """The oracle and the engine's model of the checkpoint that the oracle wrote."""
    case, folder = CASES[name], tmp_path_factory.mktemp("checkpoint")
    oracle = write_own_reference(folder, case.config) if isinstance(case.config, dict) else write_oracle(folder, case)
    config = EngineConfig(
        model=str(folder), dtype="float32", num_kv_blocks=32, block_size=BLOCK_SIZE, max_model_len=case.max_model_len
    )
    return oracle, build_runner(config)


def write_oracle(folder: Path, case: Case) -> Oracle:
    assert not isinstance(case.config, dict)
    model = build_oracle(case.config)
    write_family_checkpoint(folder, model, fused_experts=case.fused_experts)
    if case.mtp_layer:
        tensors = load_file(folder / "model.safetensors")
        layer = f"model.layers.{case.config.num_hidden_layers}."
        tensors |= {f"{layer}eh_proj.weight": torch.zeros(64, 128), f"{layer}shared_head.norm.weight": torch.ones(64)}
        save_file(tensors, folder / "model.safetensors")
    if case.oracle_changes:
        changed = type(case.config)(**case.config.to_dict() | case.oracle_changes)
        model = build_oracle(changed)
    return lambda token_ids: model(torch.tensor([token_ids]), use_cache=False).logits[0]


def write_own_reference(folder: Path, config: dict[str, Any]) -> Oracle:
    tensors = deepseek_moe_reference.write_checkpoint(folder, config, seed=0)
    return lambda token_ids: deepseek_moe_reference.logits_at_every_position(config, tensors, token_ids)


@pytest.mark.parametrize("chunk_size", [NUM_TOKENS, 33])
def test_logits_equal_the_oracle_at_every_position(
    name: str, pair: tuple[Oracle, ModelRunner], chunk_size: int
) -> None:
    oracle, runner = pair
    token_ids = torch.randint(0, 256, (NUM_TOKENS,), generator=torch.Generator().manual_seed(7)).tolist()
    with torch.inference_mode():
        expected = oracle(token_ids)
    sequence = sequence_of(token_ids, NUM_TOKENS)
    chunks = [min(chunk_size, NUM_TOKENS - start) for start in range(0, NUM_TOKENS, chunk_size)]
    actual = torch.cat([engine_logits(runner, sequence, num_new) for num_new in chunks])
    difference = (actual - expected).abs().max().item()
    measured.setdefault(name, []).append(difference)
    assert difference < TOLERANCE


def test_64_greedy_tokens_equal_the_oracle_through_pages(name: str, pair: tuple[Oracle, ModelRunner]) -> None:
    oracle, runner = pair
    prompt = torch.randint(0, 256, (21,), generator=torch.Generator().manual_seed(11)).tolist()
    sequence = sequence_of(prompt, len(prompt) + NUM_GREEDY)
    rows = [engine_logits(runner, sequence, len(prompt))[-1:]]
    for _ in range(NUM_GREEDY - 1):
        sequence.token_ids.append(int(rows[-1].argmax()))
        rows.append(engine_logits(runner, sequence, 1))
    # The oracle's own choice after every prefix of our text: they are the same text if each choice is the same.
    with torch.inference_mode():
        expected = oracle(sequence.token_ids)[len(prompt) - 1 :]
    logits = torch.cat(rows)
    assert logits.argmax(dim=-1).tolist() == expected.argmax(dim=-1).tolist()
    difference = (logits - expected).abs().max().item()
    measured.setdefault(name, []).append(difference)
    assert difference < TOLERANCE


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what was measured, after the last test."""
    yield
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if capture is None or not measured:
        return
    lines = [f"\n\n{'largest difference of logits':36} {'whole':>8} {'chunks':>8} {'decode':>8}  greedy"]
    for row, differences in measured.items():
        cells = " ".join(f"{difference:8.1e}" for difference in differences)
        lines.append(f"{row:36} {cells}  {f'{NUM_GREEDY} equal' if len(differences) == 3 else ''}")
    with capture.global_and_fixture_disabled():
        sys.stdout.write("\n".join(lines) + "\n")


NUM_SPOKEN: Final = 32  # of thirty layers: seconds


def test_smollm2_speaks_and_its_greedy_tokens_equal_transformers() -> None:
    # transformers reads the file's vocabulary for half a minute, so the oracle gets its tensors from our reader; that
    # the reader is right shows in the text.
    config, source = open_checkpoint(resolve_model("smollm2"))
    oracle = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=100000.0,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    missing, unexpected = oracle.load_state_dict(dict(source.tensors()), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    oracle.tie_weights()
    runner = build_runner(EngineConfig(model="smollm2", dtype="float32", num_kv_blocks=32))
    tokenizer = load_tokenizer("smollm2")
    answers = []
    for text in ("The capital of France is", "def fibonacci(n):\n", "<|im_start|>user\nHello!<|im_end|>\n"):
        prompt = tokenizer.encode(text)
        sequence = sequence_of(prompt, len(prompt) + NUM_SPOKEN)
        row = engine_logits(runner, sequence, len(prompt))[-1:]
        for _ in range(NUM_SPOKEN):
            sequence.token_ids.append(int(row.argmax()))
            row = engine_logits(runner, sequence, 1)
        with torch.inference_mode():
            expected = oracle(torch.tensor([sequence.token_ids])).logits[0, len(prompt) - 1 : -1].argmax(dim=-1)
        assert sequence.token_ids[len(prompt) :] == expected.tolist()
        answers.append(tokenizer.decode(expected.tolist()))
    assert answers[0].startswith(" Paris")
