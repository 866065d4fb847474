"""The tensors of a GGUF file as they are stored, in quantised blocks, and their values in float32.

Values are those of `gguf.dequantize`, bit by bit. It is fed pieces that stay in a core's cache, on as many threads as
there are: numpy lets go of the interpreter while it computes.
"""

import functools
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.metadata import GGUFTensor

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_VALUES_AT_A_TIME: Final = 1 << 17
"""A multiple of every block's size. Smaller pieces cost more in calls, larger ones leave the cache."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the file, or a part of one.

    Attributes:
        name: in the file.
        shape: of the values.
        raw: a view of the file, [..., bytes of a row]; blocks never cross rows, so rows may be chosen and moved.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    raw: Bytes

    def __getitem__(self, index: int | slice) -> "StoredTensor":
        """One entry of the outermost dimension, or some."""
        raw = self.raw[index]
        return replace(self, raw=raw, shape=(*raw.shape[:-1], self.shape[-1]))

    def values(self, pool: Executor) -> Tensor:
        """The values in float32; not to be written to, as they may be the file itself."""
        raw = np.ascontiguousarray(self.raw).reshape(-1)
        if self.kind is GGMLQuantizationType.F32:
            return torch.from_numpy(np.require(raw.view(np.float32), requirements="A")).view(self.shape)
        out = torch.empty(self.shape, dtype=torch.float32)
        _dequantize(raw, self.kind, out.view(-1).numpy(), pool)
        return out


def open_tensors(path: Path, tensors: Sequence[GGUFTensor]) -> dict[str, StoredTensor]:
    """Views of the tensors of one file, by name.

    Raises:
        ModelLoadError: a tensor's type is unknown or cannot be dequantised, its rows are no whole number of blocks, or
            it lies outside the file or over another tensor.
    """
    if not tensors:
        return {}
    # torch wants writable memory: in mode "c" written pages become copies, and none is written. Slices of a memmap cost
    # much more than those of a plain array.
    data = np.memmap(path, mode="c", dtype=np.uint8).view(np.ndarray)
    found: dict[str, StoredTensor] = {}
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda each: each.offset):
        kind, byte_shape = _layout(path, tensor)
        start, size = tensor.offset, math.prod(byte_shape)
        if start + size > data.size:
            raise ModelLoadError(
                f"{path}: tensor {tensor.name} would lie at bytes {start} to {start + size}, and the file has "
                f"{data.size}: it is cut off or broken"
            )
        if start < end:
            raise ModelLoadError(f"{path}: tensors {last} and {tensor.name} overlap: the file is broken")
        end, last = start + size, tensor.name
        found[tensor.name] = StoredTensor(tensor.name, kind, tensor.shape, data[start:end].reshape(byte_shape))
    return found


def _layout(path: Path, tensor: GGUFTensor) -> tuple[GGMLQuantizationType, tuple[int, ...]]:
    """The tensor's type, and the shape of its bytes."""
    try:
        kind = GGMLQuantizationType(tensor.type_id)
    except ValueError:
        kind = None
    if kind is None or not _is_dequantizable(kind):
        known = ", ".join(each.name for each in GGMLQuantizationType if _is_dequantizable(each))
        raise ModelLoadError(
            f"{path}: tensor {tensor.name} is of type {kind.name if kind else tensor.type_id}, which is not supported: "
            f"{known} are"
        )
    if not tensor.shape or 0 in tensor.shape:
        raise ModelLoadError(f"{path}: tensor {tensor.name} is empty: its shape is {list(tensor.shape)}")
    try:
        return kind, quant_shape_to_byte_shape(tensor.shape, kind)
    except ValueError as error:
        raise ModelLoadError(f"{path}: tensor {tensor.name} of shape {list(tensor.shape)}: {error}") from error


@functools.cache
def _is_dequantizable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package can, found out by asking it for a block of zeros."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _dequantize(raw: Bytes, kind: GGMLQuantizationType, out: Floats, pool: Executor) -> None:
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    step = _VALUES_AT_A_TIME // block_size * block_bytes

    def fill(start: int) -> None:
        # As one row: gguf works through 16 rows at a time, and rows are too short to be worth its calls.
        with np.errstate(all="ignore"):  # scales may be infinite; a model that has such is not for us to judge
            values = dequantize(raw[start * step : (start + 1) * step].reshape(1, -1), kind)
        out[start * _VALUES_AT_A_TIME : (start + 1) * _VALUES_AT_A_TIME] = values[0]

    pieces = range(-(-len(out) // _VALUES_AT_A_TIME))
    for _ in map(fill, pieces) if len(pieces) == 1 else pool.map(fill, pieces):
        pass
