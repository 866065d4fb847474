"""Checkpoint tensors to parameters: every tensor must be claimed, every parameter filled, every shape equal."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.layers.feed_forward import MixtureOfExperts
from deepseek_engine.layers.linear import Linear, QuantizableModule
from deepseek_engine.models.transformer import DecoderLayer, Transformer
from deepseek_engine.quantization.int8 import quantize_rows

MAX_NAMES_IN_MESSAGE = 5
ROWS_AT_A_TIME = 256


class CheckpointSource(Protocol):
    """Tensors by their Hugging Face names, from whatever file holds them."""

    def names(self) -> set[str]:
        """Every tensor's name, without reading data."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, one at a time, so that no second copy of the model is ever in memory."""
        ...


class SafetensorsSource:
    """A folder with `model.safetensors`, or shards and their `model.safetensors.index.json`."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            self._files = [folder / name for name in sorted(set(shards))]
        else:
            self._files = sorted(folder.glob("*.safetensors"))
        if not self._files:
            raise ModelLoadError(f"{folder} has no .safetensors file: pickled checkpoints (.bin, .pt) are never loaded")

    def names(self) -> set[str]:
        """Names from the files' headers."""
        return {name for file in self._files for name in self._open(file).keys()}  # noqa: SIM118 - not a dict

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors, file by file."""
        for file in self._files:
            handle = self._open(file)
            for name in handle.keys():  # noqa: SIM118 - not a dict
                yield name, handle.get_tensor(name)

    @staticmethod
    def _open(file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"{file} cannot be read as safetensors: {error}") from error


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded."""

    num_tensors: int
    num_bytes: int


def load_weights(model: Transformer, source: CheckpointSource) -> LoadReport:
    """Fill the model's parameters from a checkpoint.

    Raises:
        ModelLoadError: tensors are missing, unexpected or misshapen; the message names them.
    """
    destinations = _destinations(model, source.names())
    missing = destinations.keys() - source.names()
    if missing:
        raise ModelLoadError(f"the checkpoint lacks {_listed(missing)}")
    extra = {name for name in source.names() - destinations.keys() if not _may_be_ignored(model, name)}
    if extra:
        raise ModelLoadError(f"the checkpoint has tensors that this architecture does not use: {_listed(extra)}")
    scales = _Int8Scales(model)
    for name, tensor in source.tensors():
        if (destination := destinations.get(name)) is None:
            continue
        if destination.shape != tensor.shape:
            raise ModelLoadError(
                f"{name} has shape {list(tensor.shape)}: config.json asks for {list(destination.shape)}"
            )
        if destination.dtype is torch.int8:
            _quantize_into(destination, scales.of(destination), tensor)
        else:
            destination.copy_(tensor)
    parameters = {id(p): p for p in model.parameters()}.values()
    return LoadReport(num_tensors=len(destinations), num_bytes=sum(p.nbytes for p in parameters))


def store_as_int8(model: nn.Module) -> None:
    """Give the weights that may be quantised the INT8 form, before they are loaded."""
    for module in model.modules():
        if isinstance(module, QuantizableModule):
            module.store_as_int8()


class _Int8Scales:
    """The scales of any rows of the model's INT8 weights, found by where the rows lie."""

    def __init__(self, model: nn.Module) -> None:
        self._scale_of: dict[int, Tensor] = {}
        for module in model.modules():
            for name in module.quantizable if isinstance(module, QuantizableModule) else ():
                if (scale := getattr(module, f"{name}_scale")) is not None:
                    self._scale_of[getattr(module, name).data_ptr()] = scale.data

    def of(self, rows: Tensor) -> Tensor:
        """A view of the scales: [..., out] for rows [..., out, in] of one weight."""
        first = rows.storage_offset() // rows.shape[-1]
        scale = self._scale_of[rows.untyped_storage().data_ptr()].view(-1)
        return scale[first : first + rows[..., 0].numel()].view(rows.shape[:-1])


def _quantize_into(rows: Tensor, scale: Tensor, values: Tensor) -> None:
    """Quantise in pieces: the float32 copies that it takes stay small beside the tensor."""
    for rows_part, scale_part, values_part in zip(
        rows.flatten(0, -2).split(ROWS_AT_A_TIME),
        scale.flatten().split(ROWS_AT_A_TIME),
        values.flatten(0, -2).split(ROWS_AT_A_TIME),
        strict=True,
    ):
        quantized, found = quantize_rows(values_part)
        rows_part.copy_(quantized)
        scale_part.copy_(found)


def _destinations(model: Transformer, names: set[str]) -> dict[str, Tensor]:
    """Where each checkpoint tensor goes; a fused projection is a view of its rows."""
    found: dict[str, Tensor] = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm.weight}
    if not model.config.tie_word_embeddings:
        found["lm_head.weight"] = model.head.weight
    for index, module in enumerate(model.layers):
        layer = cast("DecoderLayer", module)
        prefix = f"model.layers.{index}."
        found[prefix + "input_layernorm.weight"] = layer.attention_norm.weight
        found[prefix + "post_attention_layernorm.weight"] = layer.feed_forward_norm.weight
        found |= _linear(layer.attention.qkv, prefix + "self_attn.", "q_proj", "k_proj", "v_proj")
        found |= _linear(layer.attention.output, prefix + "self_attn.", "o_proj")
        feed_forward = layer.feed_forward
        if isinstance(feed_forward, MixtureOfExperts):
            found |= _experts(feed_forward, prefix, names)
        else:
            found |= _linear(feed_forward.gate_up, prefix + "mlp.", "gate_proj", "up_proj")
            found |= _linear(feed_forward.down, prefix + "mlp.", "down_proj")
    return found


def _linear(linear: Linear, prefix: str, *projections: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part, name in enumerate(projections):
        found[f"{prefix}{name}.weight"] = linear.part(linear.weight, part)
        if linear.bias is not None:
            found[f"{prefix}{name}.bias"] = linear.part(linear.bias, part)
    return found


def _experts(moe: MixtureOfExperts, layer_prefix: str, names: set[str]) -> dict[str, Tensor]:
    """Both spellings: a tensor an expert and projection (`w1`, `w3`, `w2`), or all experts in one (transformers 5)."""
    fused = f"{layer_prefix}mlp.experts.gate_up_proj"
    if fused in names:
        return {
            f"{layer_prefix}mlp.gate.weight": moe.router.weight,
            fused: moe.gate_up,
            f"{layer_prefix}mlp.experts.down_proj": moe.down,
        }
    prefix = f"{layer_prefix}block_sparse_moe."
    found: dict[str, Tensor] = {f"{prefix}gate.weight": moe.router.weight}
    inner = moe.down.shape[2]
    for expert in range(moe.down.shape[0]):
        found[f"{prefix}experts.{expert}.w1.weight"] = moe.gate_up[expert, :inner]
        found[f"{prefix}experts.{expert}.w3.weight"] = moe.gate_up[expert, inner:]
        found[f"{prefix}experts.{expert}.w2.weight"] = moe.down[expert]
    return found


def _may_be_ignored(model: Transformer, name: str) -> bool:
    """Buffers that old files carry, and the head's own copy where it is tied to the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and model.config.tie_word_embeddings)


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:MAX_NAMES_IN_MESSAGE]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
