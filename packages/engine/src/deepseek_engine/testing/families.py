"""Tiny random checkpoints of every family that transformers knows, written by transformers itself. For tests only.

The model that wrote a checkpoint stays in memory as the oracle for what the engine computes from it.
"""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from deepseek_engine.testing.checkpoints import VOCAB_SIZE, write_tokenizer

TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": None,
}
"""Fields that most families share."""
TINY_LATENT: dict[str, Any] = {
    **TINY,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
"""Those of DeepSeek V2, V3 and V3.2."""


def build_oracle(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model of transformers in float32 with eager attention; the same config and seed give the same weights.

    Weights are scaled so that every part matters and greedy choices are clear-cut: no bias is 0, no norm is 1.
    """
    model = cast(
        "PreTrainedModel",
        AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager"),
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in sorted(tensors.items()):
            if name.endswith("inv_freq"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("bias"):
                tensor.copy_(0.2 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(noise * _gain(name) / tensor.shape[-1] ** 0.5)
    model.tie_weights()
    return model


def write_family_checkpoint(folder: Path, oracle: PreTrainedModel, *, fused_experts: bool = False) -> Path:
    """Save the model as its family's checkpoint, with a tokenizer; returns the folder.

    Args:
        folder: made if it does not exist.
        oracle: of `build_oracle`.
        fused_experts: whether all experts of a layer lie in one tensor, as transformers 5 keeps them in memory, or one
            tensor an expert, as released checkpoints have them.
    """
    write_tokenizer(folder)
    oracle.generation_config.eos_token_id = [256, 258]
    oracle.save_pretrained(folder, save_original_format=not fused_experts)
    return folder


def _gain(name: str) -> float:
    if name.endswith("embed_tokens.weight"):
        return 8.0
    if name.endswith("lm_head.weight"):
        return 4.0
    return 2.0 if ".gate.weight" in name or "router" in name else 1.0
