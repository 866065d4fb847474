"""GGUF files as checkpoints: their metadata as a ModelConfig, their tensors dequantised under Hugging Face names."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf_metadata import GGUFTensor, read_gguf_header
from deepseek_engine.model_config import DenseConfig, GroupedQueryConfig, LayerConfig, ModelConfig, RopeConfig

Scalar = TypeVar("Scalar", int, float, str)
Array = np.ndarray[Any, np.dtype[Any]]

_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR: Final = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GGUFCheckpoint:
    """One `.gguf` file of architecture `llama`, dense."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header = read_gguf_header(path)
        architecture = self._field("general.architecture", str)
        if architecture != "llama" or self._field("llama.expert_count", int, 0) > 0:
            raise ModelLoadError(f"{path} holds {architecture!r}: of GGUF files, this engine runs dense llama ones")
        self.config = self._read_config()

    def names(self) -> set[str]:
        """Every tensor's Hugging Face name."""
        return {self._hugging_face_name(tensor.name) for tensor in self._header.tensors}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor as float32, dequantised by the gguf package."""
        data = np.memmap(self._path, mode="c", dtype=np.uint8)  # torch wants writable memory; nothing is written back
        for tensor in self._header.tensors:
            values = self._dequantize(tensor, data)
            name = self._hugging_face_name(tensor.name)
            if ".self_attn.q_proj." in name or ".self_attn.k_proj." in name:
                values = _unpermute(values, self.config.rope.dim)
            yield name, torch.from_numpy(np.ascontiguousarray(values))

    def _dequantize(self, tensor: GGUFTensor, data: Array) -> Array:
        try:
            kind = GGMLQuantizationType(tensor.type_id)
            byte_shape = quant_shape_to_byte_shape(tensor.shape, kind)
            raw = data[tensor.offset : tensor.offset + int(np.prod(byte_shape))].reshape(byte_shape)
            values: Array = dequantize(raw, kind)
        except (ValueError, NotImplementedError) as error:
            raise ModelLoadError(f"{self._path}: tensor {tensor.name} cannot be read: {error}") from error
        return values.astype(np.float32, copy=False)

    def _read_config(self) -> ModelConfig:
        names = {tensor.name for tensor in self._header.tensors}
        if self._field("llama.rope.scaling.type", str, "none") != "none" or "rope_freqs.weight" in names:
            raise ModelLoadError(f"{self._path} scales its rotary frequencies: not supported for GGUF files")
        hidden_size = self._field("llama.embedding_length", int)
        num_heads = self._field("llama.attention.head_count", int)
        vocabulary = self._header.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(vocabulary, list):
            raise ModelLoadError(f"{self._path} lacks the metadata tokenizer.ggml.tokens")
        head_dim = self._field("llama.attention.key_length", int, hidden_size // num_heads)
        has_bias = "blk.0.attn_q.bias" in names
        norm_eps = self._field("llama.attention.layer_norm_rms_epsilon", float)
        attention = GroupedQueryConfig(
            num_attention_heads=num_heads,
            num_key_value_heads=self._field("llama.attention.head_count_kv", int, num_heads),
            head_dim=head_dim,
            qkv_bias=has_bias,
            output_bias=has_bias,
        )
        feed_forward = DenseConfig(intermediate_size=self._field("llama.feed_forward_length", int))
        return ModelConfig(
            architecture="LlamaForCausalLM",
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            max_position_embeddings=self._field("llama.context_length", int),
            layers=(LayerConfig(attention, feed_forward),) * self._field("llama.block_count", int),
            rope=RopeConfig(head_dim, self._field("llama.rope.freq_base", float, 10000.0)),
            norm_eps=norm_eps,
            final_norm_eps=norm_eps,
            tie_word_embeddings="output.weight" not in names,
        )

    def _field(self, key: str, kind: type[Scalar], default: Scalar | None = None) -> Scalar:
        value = self._header.metadata.get(key, default)
        if value is None:
            raise ModelLoadError(f"{self._path} lacks the metadata {key}")
        if not isinstance(value, kind):
            raise ModelLoadError(f"{self._path}: {key}={value!r} is not of type {kind.__name__}")
        return value

    def _hugging_face_name(self, name: str) -> str:
        if name in _NAMES:
            return _NAMES[name]
        match = _LAYER_TENSOR.fullmatch(name)
        if match is None or match[2] not in _LAYER_NAMES:
            raise ModelLoadError(f"{self._path} has a tensor that this architecture does not use: {name}")
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def _unpermute(values: Array, head_dim: int) -> Array:
    """Undo llama.cpp's row order of Q and K: it interleaves the two halves that rotary embedding pairs up."""
    pairs = values.reshape(values.shape[0] // head_dim, head_dim // 2, 2, -1)
    return cast("Array", pairs.swapaxes(1, 2).reshape(values.shape))
