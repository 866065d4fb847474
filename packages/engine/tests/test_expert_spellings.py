"""Experts in either spelling fill the same parameters. What transformers writes in both is in test_parity_matrix.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_runner import build_runner
from deepseek_engine.step_model import TorchModel
from deepseek_engine.testing import deepseek_moe_reference
from deepseek_engine.testing.checkpoints import TINY_MOE, VOCAB_SIZE, write_tiny_checkpoint

MOE_16B = {
    "architectures": ["DeepseekForCausalLM"], "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "norm_topk_prob": False, "scoring_func": "softmax", "attention_bias": False,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def write_moe_16b(folder: Path) -> dict[str, Tensor]:
    (folder / "config.json").write_text(json.dumps(MOE_16B))
    tensors = deepseek_moe_reference.random_tensors(MOE_16B, seed=0)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def fuse(tensors: dict[str, Tensor], projections: tuple[str, ...]) -> dict[str, Tensor]:
    """All experts of a layer in one tensor, as transformers 5 keeps DeepSeek's."""
    by_place: dict[tuple[str, str], dict[int, Tensor]] = {}
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.mlp\.experts\.)(\d+)\.(gate|up|down)_proj\.weight", name)
        if match is None or match[3] not in projections:
            fused[name] = tensor
        else:
            by_place.setdefault((match[1], match[3]), {})[int(match[2])] = tensor
    stacked = {place: torch.stack([found[i] for i in sorted(found)]) for place, found in by_place.items()}
    for (prefix, projection), tensor in stacked.items():
        if projection == "down":
            fused[f"{prefix}down_proj"] = tensor
        elif projection == "gate":
            fused[f"{prefix}gate_up_proj"] = torch.cat((tensor, stacked[prefix, "up"]), dim=1)
    return fused


def parameters(folder: Path) -> dict[str, Any]:
    runner = build_runner(EngineConfig(model=str(folder), dtype="float32", num_kv_blocks=8))
    assert isinstance(runner.model, TorchModel)
    return runner.model.transformer.state_dict()


def test_deepseek_moe_16b_loads_the_same_in_both_spellings(tmp_path: Path):
    tensors = write_moe_16b(tmp_path)
    expected = parameters(tmp_path)
    save_file(fuse(tensors, ("gate", "up", "down")), tmp_path / "model.safetensors")
    actual = parameters(tmp_path)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_half_of_the_experts_in_one_spelling_is_refused_by_name(tmp_path: Path):
    tensors = write_moe_16b(tmp_path)
    save_file(fuse(tensors, ("gate", "up")), tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks model\.layers\.1\.mlp\.experts\.down_proj"):
        parameters(tmp_path)


def test_a_missing_expert_is_named(tmp_path: Path):
    folder = write_tiny_checkpoint(tmp_path, TINY_MOE)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.15.w3.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks model\.layers\.1\.block_sparse_moe\.experts\.15\.w3\.weight"):
        parameters(folder)
