"""Every architecture of GGUF files against transformers, which runs the file's own weights, dequantised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import build_runner
from deepseek_engine.testing import deepseek_moe_reference
from deepseek_engine.testing.families import TINY, build_oracle, write_family_checkpoint
from deepseek_engine.testing.gguf_export import GGUFExport
from deepseek_engine.testing.logits import BLOCK_SIZE, engine_logits, sequence_of

TOLERANCE: Final = 1e-4
"""Two float32 implementations that add in different orders."""
NUM_TOKENS: Final = 90

LLAMA3_ROPE: Final = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE: Final = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
YARN_OF_DEEPSEEK: Final = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 24,
    "beta_slow": 2,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
MLA: Final = {
    **TINY,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
V2_LITE: Final = MLA | {"q_lora_rank": None, "rope_parameters": YARN_OF_DEEPSEEK}
V2: Final = MLA | {
    "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0
}  # fmt: skip
V3: Final = MLA | {
    "n_group": 4, "topk_group": 2, "rope_parameters": YARN_OF_DEEPSEEK | {"mscale": 1.0, "mscale_all_dim": 1.0}
}  # fmt: skip
MOE_16B: Final[dict[str, Any]] = {
    "architectures": ["DeepseekForCausalLM"],
    "model_type": "deepseek",
    "vocab_size": TINY["vocab_size"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 258,
}
LARGE_ROWS: Final = TINY | {"hidden_size": 256, "intermediate_size": 256}
"""Blocks of the K types hold 256 values."""


def mixed_k(name: str) -> Kind:
    """As Q4_K_M and Q5_K_M mix them."""
    if "attn_v" in name or "ffn_down" in name or "output" in name:
        return Kind.Q6_K
    return Kind.Q5_K if "ffn" in name else Kind.Q4_K


@dataclass(frozen=True, slots=True)
class Case:
    """One model and how its file is written."""

    config: PreTrainedConfig | dict[str, Any]
    kind: Kind | Callable[[str], Kind] = Kind.F32
    split_kv_b: bool = True
    experts: Literal["stacked", "single", "gate_up"] = "stacked"


CASES: Final[dict[str, Case]] = {
    "llama": Case(LlamaConfig(**TINY)),
    "llama Q4_0, no GQA": Case(LlamaConfig(**TINY | {"num_key_value_heads": 4}), Kind.Q4_0),
    "llama F16 tied, biases": Case(
        LlamaConfig(**TINY, tie_word_embeddings=True, attention_bias=True, mlp_bias=True), Kind.F16
    ),
    "llama BF16, linear rope": Case(
        LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "factor": 4.0}), Kind.BF16
    ),
    "llama Q8_0, yarn": Case(LlamaConfig(**TINY, head_dim=32, rope_parameters=YARN_ROPE), Kind.Q8_0),
    "llama Q4_1, rope_freqs": Case(LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE), Kind.Q4_1),
    "llama K types": Case(LlamaConfig(**LARGE_ROWS), mixed_k),
    "mixtral Q5_0": Case(MixtralConfig(**TINY, num_local_experts=8), Kind.Q5_0),
    "mixtral F16, an expert a tensor": Case(MixtralConfig(**TINY, num_local_experts=4), Kind.F16, experts="single"),
    "mixtral K types": Case(MixtralConfig(**LARGE_ROWS, num_local_experts=4), mixed_k),
    "qwen2 Q5_1": Case(Qwen2Config(**TINY), Kind.Q5_1),
    "qwen3 Q8_0 tied": Case(Qwen3Config(**TINY, head_dim=24, tie_word_embeddings=True), Kind.Q8_0),
    "deepseek moe-16b Q8_0": Case(MOE_16B, Kind.Q8_0),
    "deepseek v2-lite": Case(DeepseekV2Config(**V2_LITE)),
    "deepseek v2-lite Q8_0, whole kv_b": Case(DeepseekV2Config(**V2_LITE), Kind.Q8_0, split_kv_b=False),
    "deepseek v2 Q4_0, groups": Case(DeepseekV2Config(**V2), Kind.Q4_0),
    "deepseek v3 Q8_0, groups, yarn": Case(DeepseekV3Config(**V3), Kind.Q8_0),
    "deepseek v3 Q4_1, gates above ups": Case(
        DeepseekV3Config(**MLA, n_group=1, topk_group=1), Kind.Q4_1, experts="gate_up"
    ),
    "deepseek v3 one group, whole kv_b": Case(
        DeepseekV3Config(**MLA, n_group=1, topk_group=1, norm_topk_prob=False), split_kv_b=False
    ),
}


def write_folder(folder: Path, case: Case) -> None:
    if isinstance(case.config, dict):
        deepseek_moe_reference.write_checkpoint(folder, case.config, seed=0)
    else:
        write_family_checkpoint(folder, build_oracle(case.config))


def oracle_logits(folder: Path, case: Case, token_ids: list[int]) -> Tensor:
    """Of the weights that are in the folder now."""
    if isinstance(case.config, dict):
        tensors = load_file(folder / "model.safetensors")
        return deepseek_moe_reference.logits_at_every_position(case.config, tensors, token_ids)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return oracle(torch.tensor([token_ids]), use_cache=False).logits[0]


def export(folder: Path, case: Case) -> GGUFExport:
    kind = case.kind
    kind_of = (lambda _: kind) if isinstance(kind, Kind) else kind
    return GGUFExport(folder, kind_of, split_kv_b=case.split_kv_b, experts=case.experts)


def gguf_logits(path: Path, token_ids: list[int]) -> Tensor:
    runner = build_runner(EngineConfig(model=str(path), dtype="float32", num_kv_blocks=32, block_size=BLOCK_SIZE))
    return engine_logits(runner, sequence_of(token_ids, len(token_ids)), len(token_ids))


def some_tokens() -> list[int]:
    return torch.randint(0, 256, (NUM_TOKENS,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers_at_every_position(name: str, tmp_path: Path) -> None:
    case, token_ids = CASES[name], some_tokens()
    write_folder(tmp_path, case)
    exported = export(tmp_path, case)
    path = exported.write(tmp_path / "model.gguf")
    save_file(
        {name: tensor.contiguous() for name, tensor in exported.weights.items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    expected = oracle_logits(tmp_path, case, token_ids)
    assert (gguf_logits(path, token_ids) - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("name", ["llama Q4_0, no GQA", "qwen2 Q5_1"])
def test_transformers_own_reader_of_gguf_agrees(name: str, tmp_path: Path) -> None:
    case, token_ids = CASES[name], some_tokens()
    write_folder(tmp_path, case)
    path = export(tmp_path, case).write(tmp_path / "model.gguf")
    oracle = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        expected = oracle(torch.tensor([token_ids]), use_cache=False).logits[0]
    assert (gguf_logits(path, token_ids) - expected).abs().max().item() < TOLERANCE
