"""DeepSeekMoE-16B (`DeepseekForCausalLM`), slow and obvious: transformers has no class for it. An oracle for tests.

Written from the paper (arXiv 2401.06066, section 3) and the fields of the released config: Llama's attention, a few
shared experts that are one gated network, and routed experts chosen by softmax. One token at a time, one expert at a
time, float32, and nothing in common with the engine's layers.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - typed in part
from torch import Tensor

from deepseek_engine.testing.checkpoints import write_tokenizer

Tensors = dict[str, Tensor]


def random_tensors(config: dict[str, Any], seed: int) -> Tensors:
    """Weights under the released checkpoint's names."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * gain / math.sqrt(columns)

    def vector(size: int, around: float) -> Tensor:
        return around + 0.1 * torch.randn(size, generator=generator)

    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = hidden // heads
    tensors = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden, gain=math.sqrt(hidden)),
        "model.norm.weight": vector(hidden, 1.0),
        "lm_head.weight": matrix(config["vocab_size"], hidden, gain=4.0),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = vector(hidden, 1.0)
        tensors[f"{prefix}post_attention_layernorm.weight"] = vector(hidden, 1.0)
        widths = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        for name, count in widths.items():
            tensors[f"{prefix}self_attn.{name}.weight"] = matrix(count * head_dim, hidden)
        tensors[f"{prefix}self_attn.o_proj.weight"] = matrix(hidden, heads * head_dim)
        if config["attention_bias"]:
            for name, count in widths.items():
                tensors[f"{prefix}self_attn.{name}.bias"] = vector(count * head_dim, 0.0)
            tensors[f"{prefix}self_attn.o_proj.bias"] = vector(hidden, 0.0)
        networks = {"mlp.": config["intermediate_size"]}
        if is_moe_layer(config, layer):
            tensors[f"{prefix}mlp.gate.weight"] = matrix(config["n_routed_experts"], hidden, gain=2.0)
            width = config["moe_intermediate_size"]
            networks = {f"mlp.experts.{expert}.": width for expert in range(config["n_routed_experts"])}
            if config["n_shared_experts"]:
                networks["mlp.shared_experts."] = width * config["n_shared_experts"]
        for name, width in networks.items():
            tensors[f"{prefix}{name}gate_proj.weight"] = matrix(width, hidden)
            tensors[f"{prefix}{name}up_proj.weight"] = matrix(width, hidden)
            tensors[f"{prefix}{name}down_proj.weight"] = matrix(hidden, width)
    return tensors


def write_checkpoint(folder: Path, config: dict[str, Any], seed: int) -> Tensors:
    """Write a checkpoint of random weights, with a tokenizer; returns its tensors."""
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config, seed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def is_moe_layer(config: dict[str, Any], layer: int) -> bool:
    """Whether a layer routes its tokens: from `first_k_dense_replace` on, every `moe_layer_freq`-th."""
    return layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0


def logits_at_every_position(config: dict[str, Any], tensors: Tensors, token_ids: list[int]) -> Tensor:
    """[tokens, vocab_size], float32."""
    x = tensors["model.embed_tokens.weight"][torch.tensor(token_ids)]
    for layer in range(config["num_hidden_layers"]):
        of_layer = _below(tensors, f"model.layers.{layer}.")
        x = x + _attention(config, of_layer, _norm(x, of_layer["input_layernorm.weight"], config))
        normed = _norm(x, of_layer["post_attention_layernorm.weight"], config)
        mlp = _below(of_layer, "mlp.")
        if is_moe_layer(config, layer):
            x = x + torch.stack([_mixture(config, mlp, token) for token in normed])
        else:
            x = x + _gated(mlp, normed)
    return _norm(x, tensors["model.norm.weight"], config) @ tensors["lm_head.weight"].T


def _attention(config: dict[str, Any], tensors: Tensors, x: Tensor) -> Tensor:
    num_tokens = len(x)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // heads

    def project(name: str, of: Tensor) -> Tensor:
        bias = tensors.get(f"self_attn.{name}.bias", torch.zeros(()))
        return of @ tensors[f"self_attn.{name}.weight"].T + bias

    q = project("q_proj", x).view(num_tokens, heads, head_dim)
    k = project("k_proj", x).view(num_tokens, kv_heads, head_dim)
    v = project("v_proj", x).view(num_tokens, kv_heads, head_dim)
    out = torch.zeros(num_tokens, heads, head_dim)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        q_head, k_head = _rotated(q[:, head], config["rope_theta"]), _rotated(k[:, shared], config["rope_theta"])
        for token in range(num_tokens):
            weights = (k_head[: token + 1] @ q_head[token] / math.sqrt(head_dim)).softmax(dim=0)
            out[token, head] = weights @ v[: token + 1, shared]
    return project("o_proj", out.flatten(1))


def _rotated(x: Tensor, theta: float) -> Tensor:
    """Pairs (i, i + half) of token t turned by t * theta^(-2i / dim)."""
    half = x.shape[1] // 2
    angles = torch.outer(torch.arange(len(x)).float(), theta ** (-torch.arange(half).float() / half))
    first, second = x[:, :half], x[:, half:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), 1)


def _mixture(config: dict[str, Any], tensors: Tensors, token: Tensor) -> Tensor:
    scores = (tensors["gate.weight"] @ token).softmax(dim=0)
    chosen = sorted(range(len(scores)), key=lambda expert: -scores[expert].item())[: config["num_experts_per_tok"]]
    total = sum(scores[expert] for expert in chosen) if config["norm_topk_prob"] else torch.ones(())
    out = torch.zeros_like(token)
    for expert in chosen:
        out += scores[expert] / total * _gated(_below(tensors, f"experts.{expert}."), token)
    return out + _gated(_below(tensors, "shared_experts."), token) if config["n_shared_experts"] else out


def _gated(tensors: Tensors, x: Tensor) -> Tensor:
    gate = x @ tensors["gate_proj.weight"].T
    return (gate * gate.sigmoid() * (x @ tensors["up_proj.weight"].T)) @ tensors["down_proj.weight"].T


def _norm(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weight


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
