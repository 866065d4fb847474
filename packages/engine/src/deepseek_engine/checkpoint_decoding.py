"""Quantised checkpoints: each weight and its scale, two tensors of the file, become one weight."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.layers.linear import QuantizableModule
from deepseek_engine.model_config import Fp8BlocksConfig, Int8ChannelsConfig, QuantizationConfig
from deepseek_engine.models.names import checkpoint_destinations
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.quantization.encoded import EncodedTensor, Int8Rows
from deepseek_engine.quantization.fp8 import Fp8Blocks, grid_shape, read_scale
from deepseek_engine.weights import CheckpointSource

_SCALE_SUFFIX: Final = {Fp8BlocksConfig: "_scale_inv", Int8ChannelsConfig: "_scale"}
"""What is added to a weight's name for its scale's: `...q_proj.weight_scale`, `...experts.gate_up_proj_scale_inv`."""
_FUSED_GATE_UP: Final = ".experts.gate_up_proj"


class DecodedSource:
    """A checkpoint whose weights have scales, read as if it had none.

    A weight waits for its scale, or the scale for its weight, where the two are not neighbours; files are mapped to
    memory, so what waits takes none.

    Raises:
        ModelLoadError: a scale is without its weight.
    """

    def __init__(self, source: CheckpointSource, quantization: QuantizationConfig) -> None:
        self._source, self._quantization = source, quantization
        self._suffix = _SCALE_SUFFIX[type(quantization)]
        names = source.names()
        self._scaled = {name.removesuffix(self._suffix) for name in names if name.endswith(self._suffix)}
        self._names = {name for name in names if not name.endswith(self._suffix)}
        for name in sorted(self._scaled - self._names):
            raise ModelLoadError(f"the checkpoint has {name}{self._suffix} without {name}")

    def names(self) -> set[str]:
        """Every weight's name; scales are part of their weights."""
        return self._names

    def is_int8(self, name: str) -> bool:
        """Whether a weight is stored as INT8."""
        return isinstance(self._quantization, Int8ChannelsConfig) and name in self._scaled

    def tensors(self) -> Iterator[tuple[str, Tensor | EncodedTensor]]:
        """Every weight, one at a time.

        Raises:
            ModelLoadError: a weight is without its scale, or the two do not go together.
        """
        waiting: dict[str, Tensor] = {}
        for stored_name, tensor in self._source.tensors():
            assert isinstance(tensor, Tensor), "what lies below is a file"
            name = stored_name.removesuffix(self._suffix)
            if name not in self._scaled:
                self._check_plain(name, tensor)
                yield name, tensor
            elif name not in waiting:
                waiting[name] = tensor
            else:
                pair = waiting.pop(name), tensor
                weight, scale = pair if stored_name != name else reversed(pair)
                yield name, self._combine(name, weight, scale)

    def _check_plain(self, name: str, tensor: Tensor) -> None:
        """A weight without a scale may not be of a type that needs one."""
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
            raise ModelLoadError(f"{name} is {_called(tensor.dtype)}, but there is no {name}{self._suffix}")

    def _combine(self, name: str, weight: Tensor, scale: Tensor) -> EncodedTensor:
        match self._quantization:
            case Fp8BlocksConfig():
                return self._fp8(name, weight, scale, self._quantization)
            case Int8ChannelsConfig():
                return self._int8(name, weight, scale)

    def _fp8(self, name: str, weight: Tensor, scale: Tensor, config: Fp8BlocksConfig) -> Fp8Blocks:
        self._check_type(name, weight, torch.float8_e4m3fn)
        if not config.is_converted(name.removesuffix(".weight")):
            raise ModelLoadError(f"{name} is FP8, but modules_to_not_convert of quantization_config names its module")
        if name.endswith(_FUSED_GATE_UP) and weight.shape[-2] % (2 * config.block[0]):
            raise ModelLoadError(
                f"{name} has {weight.shape[-2]} rows: blocks of {config.block[0]} rows of gate and up projections in "
                "one tensor cannot be told apart; save the checkpoint with a tensor an expert"
            )
        self._check_shape(name, scale, grid_shape(weight.shape, config.block))
        return Fp8Blocks(weight, self._finite(name, read_scale(scale, config.scale_fmt), scale.dtype), config.block)

    def _int8(self, name: str, weight: Tensor, scale: Tensor) -> Int8Rows:
        self._check_type(name, weight, torch.int8)
        if scale.dim() == weight.dim():
            self._check_shape(name, scale, [*weight.shape[:-1], 1])
            scale = scale.squeeze(-1)
        self._check_shape(name, scale, list(weight.shape[:-1]))
        return Int8Rows(weight, self._finite(name, read_scale(scale, "float"), scale.dtype))

    def _check_type(self, name: str, weight: Tensor, wanted: torch.dtype) -> None:
        if weight.dtype is not wanted or weight.dim() < 2:
            raise ModelLoadError(
                f"{name} is {_called(weight.dtype)} {list(weight.shape)}: beside {name}{self._suffix} it should be a "
                f"matrix of {_called(wanted)}"
            )

    def _check_shape(self, name: str, scale: Tensor, wanted: list[int]) -> None:
        if list(scale.shape) != wanted:
            raise ModelLoadError(f"{name}{self._suffix} has shape {list(scale.shape)}: {name} asks for {wanted}")

    def _finite(self, name: str, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        if scale is None:
            raise ModelLoadError(f"{name}{self._suffix} is of type {_called(dtype)}, which is none for scales")
        if not scale.isfinite().all():
            raise ModelLoadError(f"{name}{self._suffix} has values that are not finite")
        return scale


def store_as_checkpoint_does(model: Transformer, source: DecodedSource) -> None:
    """Give the INT8 form to the modules whose weights are all INT8 in the checkpoint, before they are loaded.

    A fused projection of which a part is stored as floats stays float, and the other parts are dequantised: what a
    checkpoint leaves in full precision is left so.
    """
    stored: dict[QuantizableModule, list[bool]] = {}
    for name, destination in checkpoint_destinations(model, source.names()).items():
        module = destination.module
        if isinstance(module, QuantizableModule) and destination.parameter in module.quantizable:
            stored.setdefault(module, []).append(source.is_int8(name))
    for module, parts in stored.items():
        if all(parts):
            module.store_as_int8()


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
