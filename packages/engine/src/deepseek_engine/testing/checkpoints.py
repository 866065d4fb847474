"""Tiny random-weight checkpoints in Hugging Face format: config, safetensors, tokenizer and chat template.

Every byte of text is one token, so any text can be encoded; weights are scaled so that greedy choices are clear-cut.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - typed in part
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE: Final = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Shape of a tiny checkpoint. With experts it is a Mixtral, without a Llama."""

    hidden_size: int = 64
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    vocab_size: int = VOCAB_SIZE
    max_position_embeddings: int = 8192
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    num_local_experts: int = 0
    num_experts_per_tok: int = 2
    fused_experts: bool = False
    seed: int = 0


TINY_MOE: Final = TinyModel(num_local_experts=16)


def write_tiny_checkpoint(folder: Path, model: TinyModel | None = None) -> Path:
    """Write a checkpoint and return its folder; the same shape and seed give the same bytes."""
    model = model or TinyModel()
    write_tokenizer(folder)
    _write_json(folder / "config.json", _config(model))
    save_file(_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write what turns text into token ids and conversations into text: every byte is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "generation_config.json", {"bos_token_id": 256, "eos_token_id": [256, 258]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[2],
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _tokenizer().save(str(folder / "tokenizer.json"))


def _config(model: TinyModel) -> dict[str, Any]:
    shared = {
        name: getattr(model, name)
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "vocab_size", "max_position_embeddings", "rope_theta", "rope_scaling", "tie_word_embeddings",
        )
    }  # fmt: skip
    if model.num_local_experts > 0:
        kind = {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": model.num_local_experts,
            "num_experts_per_tok": model.num_experts_per_tok,
        }
    else:
        kind = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": model.attention_bias,
            "mlp_bias": model.mlp_bias,
        }
    fixed = {"bos_token_id": 256, "eos_token_id": 258, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    return {**kind, **shared, **fixed, "torch_dtype": "float32"}


def _tensors(model: TinyModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(model.seed)
    hidden = model.hidden_size
    tensors = {
        "model.embed_tokens.weight": torch.randn(model.vocab_size, hidden, generator=generator),
        "model.norm.weight": _vector(hidden, 1.0, generator),
    }
    if not model.tie_word_embeddings:
        tensors["lm_head.weight"] = _matrix(model.vocab_size, hidden, generator, gain=4.0)
    for index in range(model.num_hidden_layers):
        prefix = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = _vector(hidden, 1.0, generator)
        for name, (rows, columns, has_bias) in _projections(model).items():
            tensors[f"{prefix}{name}.weight"] = _matrix(rows, columns, generator)
            if has_bias:
                tensors[f"{prefix}{name}.bias"] = _vector(rows, 0.0, generator)
        if model.num_local_experts > 0:
            tensors |= _expert_tensors(prefix, model, generator)
    return tensors


def _projections(model: TinyModel) -> dict[str, tuple[int, int, bool]]:
    """Rows, columns and whether there is a bias, of a layer's linear projections."""
    hidden, inner = model.hidden_size, model.intermediate_size
    query, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    found = {
        "self_attn.q_proj": (query, hidden, model.attention_bias),
        "self_attn.k_proj": (kv, hidden, model.attention_bias),
        "self_attn.v_proj": (kv, hidden, model.attention_bias),
        "self_attn.o_proj": (hidden, query, model.attention_bias),
    }
    if model.num_local_experts == 0:
        found |= {
            "mlp.gate_proj": (inner, hidden, model.mlp_bias),
            "mlp.up_proj": (inner, hidden, model.mlp_bias),
            "mlp.down_proj": (hidden, inner, model.mlp_bias),
        }
    return found


def projection_shapes(model: TinyModel) -> dict[str, tuple[int, int]]:
    """Rows and columns of every linear projection outside the experts, by its module's name."""
    return {
        f"model.layers.{index}.{name}": (rows, columns)
        for index in range(model.num_hidden_layers)
        for name, (rows, columns, _) in _projections(model).items()
    }


def _expert_tensors(prefix: str, model: TinyModel, generator: torch.Generator) -> dict[str, Tensor]:
    """A layer's router and experts in either spelling: one tensor an expert, or all experts in one (transformers 5)."""
    hidden, inner, experts = model.hidden_size, model.intermediate_size, range(model.num_local_experts)
    router = _matrix(model.num_local_experts, hidden, generator, gain=2.0)
    gates = [_matrix(inner, hidden, generator) for _ in experts]
    ups = [_matrix(inner, hidden, generator) for _ in experts]
    downs = [_matrix(hidden, inner, generator) for _ in experts]
    if model.fused_experts:
        return {
            f"{prefix}mlp.gate.weight": router,
            f"{prefix}mlp.experts.gate_up_proj": torch.stack([torch.cat((gates[e], ups[e])) for e in experts]),
            f"{prefix}mlp.experts.down_proj": torch.stack(downs),
        }
    moe = f"{prefix}block_sparse_moe."
    tensors = {f"{moe}gate.weight": router}
    for e in experts:
        named = {"w1": gates[e], "w3": ups[e], "w2": downs[e]}
        tensors |= {f"{moe}experts.{e}.{name}.weight": tensor for name, tensor in named.items()}
    return tensors


def _matrix(rows: int, columns: int, generator: torch.Generator, gain: float = 1.0) -> Tensor:
    return torch.randn(rows, columns, generator=generator) * (gain / columns**0.5)


def _vector(size: int, around: float, generator: torch.Generator) -> Tensor:
    return around + 0.1 * torch.randn(size, generator=generator)


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
