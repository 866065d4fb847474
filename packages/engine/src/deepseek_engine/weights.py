"""Checkpoint tensors to parameters: every tensor must be claimed, every parameter filled, every shape equal."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.layers.linear import QuantizableModule
from deepseek_engine.models.names import checkpoint_destinations, may_be_ignored
from deepseek_engine.models.transformer import Transformer
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
    destinations = checkpoint_destinations(model, source.names())
    missing = destinations.keys() - source.names()
    if missing:
        raise ModelLoadError(f"the checkpoint lacks {_listed(missing)}")
    extra = {name for name in source.names() - destinations.keys() if not may_be_ignored(model, name)}
    if extra:
        raise ModelLoadError(f"the checkpoint has tensors that this architecture does not use: {_listed(extra)}")
    for name, tensor in source.tensors():
        if (destination := destinations.get(name)) is None:
            continue
        target = destination.tensor
        if target.shape != tensor.shape:
            raise ModelLoadError(f"{name} has shape {list(tensor.shape)}: config.json asks for {list(target.shape)}")
        if target.dtype is torch.int8:
            _quantize_into(target, destination.scale, tensor)
        else:
            target.copy_(tensor)
    parameters = {id(p): p for p in model.parameters()}.values()
    return LoadReport(num_tensors=len(destinations), num_bytes=sum(p.nbytes for p in parameters))


def store_as_int8(model: nn.Module) -> None:
    """Give the weights that may be quantised the INT8 form, before they are loaded."""
    for module in model.modules():
        if isinstance(module, QuantizableModule):
            module.store_as_int8()


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


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:MAX_NAMES_IN_MESSAGE]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
