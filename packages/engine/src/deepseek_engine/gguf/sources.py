"""GGUF's tensors under Hugging Face names: what each tensor of the model is made of.

llama.cpp's converter renames, stacks a layer's experts in one tensor, reorders the rows of queries and keys of those
architectures that it rotates pair by pair, and splits DeepSeek's `kv_b_proj`. All of that is undone here, without
reading data. Source: llama.cpp's conversion/*.py and the gguf package's constants.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from gguf import GGML_QUANT_SIZES
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.stored import StoredTensor
from deepseek_engine.model_config import GroupedQueryConfig, ModelConfig
from deepseek_engine.models.names import ExpertSpelling, expert_spelling

ROPE_FREQS: Final = "rope_freqs.weight"
"""Not a parameter: it is read with the configuration."""

_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_PROJECTIONS: Final = ("gate", "up", "down")
_LAYER_TENSOR: Final = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(\w+(?:\.\d{1,6})?)\.(weight|bias)")
_EXPERTS: Final = re.compile(r"ffn_(gate|up|down|gate_up)_exps")
_ONE_EXPERT: Final = re.compile(r"ffn_(gate|up|down)\.(\d+)")
"""As Mixtral's first files had them."""
_PERMUTED: Final = ("llama", "deepseek")
"""Architectures of llama.cpp that rotate neighbours of a head where transformers rotates its halves."""


class Source(Protocol):
    """What one tensor of the model is made of."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        ...

    def values(self, pool: Executor) -> Tensor:
        """float32."""
        ...


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A query or key projection whose rows alternate between the halves of each head."""

    tensor: StoredTensor
    head_dim: int

    def __post_init__(self) -> None:
        if len(self.tensor.shape) == 1 and GGML_QUANT_SIZES[self.tensor.kind][0] > 1:
            raise ModelLoadError(f"{self.tensor.name} is of type {self.tensor.kind.name}: a bias cannot be")

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return self.tensor.shape

    def values(self, pool: Executor) -> Tensor:
        """float32, halves apart; the rows are moved before they grow by being dequantised."""
        pairs = self.tensor.raw.reshape(self.shape[0] // self.head_dim, self.head_dim // 2, 2, -1)
        return replace(self.tensor, raw=pairs.swapaxes(1, 2)).values(pool)


@dataclass(frozen=True, slots=True)
class KeyValueProjection:
    """`kv_b_proj` of the two tensors that it was split into.

    Attributes:
        key: [heads, C, qk_nope_head_dim], transposed.
        value: [heads, v_head_dim, C].
    """

    key: StoredTensor
    value: StoredTensor

    def __post_init__(self) -> None:
        key, value = self.key.shape, self.value.shape
        if len(key) != 3 or len(value) != 3 or (key[0], key[1]) != (value[0], value[2]):
            raise ModelLoadError(
                f"{self.key.name} has shape {list(key)} and {self.value.name} {list(value)}: they are to be "
                "[heads, rank, length of a key] and [heads, length of a value, rank]"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Each head's key rows above its value rows."""
        heads, rank, key_length = self.key.shape
        return (heads * (key_length + self.value.shape[1]), rank)

    def values(self, pool: Executor) -> Tensor:
        """float32."""
        parts = self.key.values(pool).transpose(1, 2), self.value.values(pool)
        return torch.cat(parts, dim=1).view(self.shape)


def hugging_face_tensors(
    stored: Mapping[str, StoredTensor], architecture: str, config: ModelConfig
) -> dict[str, Source]:
    """What each of the model's tensors is made of, by its Hugging Face name.

    Args:
        stored: the file's tensors.
        architecture: of the file, as llama.cpp calls it.
        config: says how many layers there are, how wide heads are and how experts are named.

    Raises:
        ModelLoadError: the file has a tensor that the architecture does not use.
    """
    spelling = expert_spelling(config.architecture)
    found: dict[str, Source] = {}
    for name, tensor in stored.items():
        if name == ROPE_FREQS:
            continue
        if name in _NAMES:
            found[_NAMES[name]] = tensor
            continue
        match = _LAYER_TENSOR.fullmatch(name)
        if match is None:
            raise _unused(name)
        if int(match[1]) < len(config.layers):  # those behind predict a second token
            found |= _layer_tensors(tensor, int(match[1]), match[2], match[3], stored, spelling)
    if architecture in _PERMUTED:
        found |= dict(_halves_apart(found, config))
    return found


def _layer_tensors(
    tensor: StoredTensor, layer: int, part: str, kind: str, stored: Mapping[str, StoredTensor], spelling: ExpertSpelling
) -> dict[str, Source]:
    prefix = f"model.layers.{layer}."
    if part in _LAYER_NAMES:
        return {f"{prefix}{_LAYER_NAMES[part]}.{kind}": tensor}
    match part, kind:
        case "ffn_gate_inp", "weight":
            return {f"{prefix}{spelling.block}{spelling.gate}.weight": tensor}
        case "exp_probs_b", "bias":
            return {f"{prefix}{spelling.block}{spelling.gate}.e_score_correction_bias": tensor}
        case "attn_k_b", "weight":
            value = stored.get(f"blk.{layer}.attn_v_b.weight")
            if value is None:
                raise ModelLoadError(f"tensor {tensor.name} has no attn_v_b beside it")
            return {f"{prefix}self_attn.kv_b_proj.weight": KeyValueProjection(tensor, value)}
        case (("attn_v_b" | "attn_rot_embd"), "weight"):
            return {}  # the one goes with attn_k_b, the other are old files' rotary frequencies
        case _ if kind == "weight":
            return dict(_expert_tensors(tensor, f"{prefix}{spelling.block}experts.", part, spelling))
        case _:
            raise _unused(tensor.name)


def _expert_tensors(
    tensor: StoredTensor, prefix: str, part: str, spelling: ExpertSpelling
) -> Iterator[tuple[str, StoredTensor]]:
    named: dict[str, str] = dict(zip(_PROJECTIONS, spelling.projections, strict=True))
    if single := _ONE_EXPERT.fullmatch(part):
        yield f"{prefix}{int(single[2])}.{named[single[1]]}.weight", tensor
        return
    match = _EXPERTS.fullmatch(part)
    if match is None:
        raise _unused(tensor.name)
    if len(tensor.shape) != 3:
        raise ModelLoadError(f"tensor {tensor.name} has shape {list(tensor.shape)}: it is to have 3 dimensions")
    width = tensor.shape[1] // 2
    for expert in range(tensor.shape[0]):
        if match[1] == "gate_up":
            yield f"{prefix}{expert}.{named['gate']}.weight", tensor[expert][:width]
            yield f"{prefix}{expert}.{named['up']}.weight", tensor[expert][width:]
        else:
            yield f"{prefix}{expert}.{named[match[1]]}.weight", tensor[expert]


def _halves_apart(found: Mapping[str, Source], config: ModelConfig) -> Iterator[tuple[str, Source]]:
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.attention, GroupedQueryConfig)
        for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
            tensor = found.get(f"model.layers.{index}.self_attn.{name}")
            if isinstance(tensor, StoredTensor):
                yield f"model.layers.{index}.self_attn.{name}", Interleaved(tensor, layer.attention.head_dim)


def _unused(name: str) -> ModelLoadError:
    return ModelLoadError(f"the file has a tensor that this architecture does not use: {name[:100]}")
