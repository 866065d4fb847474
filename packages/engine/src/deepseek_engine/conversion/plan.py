"""What becomes of each tensor of a checkpoint: its name in the new one, and whether it is quantised.

Quantised is what `--quantization int8` quantises at load, but for the head: other engines read a quantised one as none.
Names are those of released checkpoints, which these engines know: experts that lie in one tensor are taken apart, as
INT8 weights belong to linear modules there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import nn

from deepseek_engine.layers.linear import QuantizableModule
from deepseek_engine.models.names import Destination, Destinations, checkpoint_destinations
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.quantization.encoded import Index

SCALE_BYTES: Final = 4
FLOAT32_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor to write: the part of a source's tensor that `index` selects, all of it where that is empty."""

    name: str
    index: Index
    is_quantized: bool


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Sizes of a kind of weights, before and after."""

    as_float32: int
    stored: int

    @property
    def ratio(self) -> float:
        """How many times smaller they are than in float32."""
        return self.as_float32 / self.stored


def pieces_of(model: Transformer, destinations: Destinations) -> dict[str, list[Piece]]:
    """What is written for each of the source's tensors.

    Args:
        model: on the meta device.
        destinations: where the source's tensors would be loaded.
    """
    released = checkpoint_destinations(model, set())
    parts: dict[tuple[nn.Module, str], list[str]] = {}
    for name, place in released.items():
        parts.setdefault((place.module, place.parameter), []).append(name)
    found: dict[str, list[Piece]] = {}
    for name, place in destinations.items():
        quantized = is_quantized(place) and place.module is not model.head
        if name in released:
            found[name] = [Piece(name, (), quantized)]
        else:  # all experts, or a router beside them
            assert place.index == (), "only whole parameters are spelled in another way"
            found[name] = [
                Piece(part, released[part].index, quantized) for part in parts[place.module, place.parameter]
            ]
    return found


def is_quantized(place: Destination) -> bool:
    """Whether `--quantization int8` stores the parameter as INT8."""
    return isinstance(place.module, QuantizableModule) and place.parameter in place.module.quantizable


def kept_modules(model: Transformer) -> list[str]:
    """Linear modules that keep their precision, as `ignore` of a quantization_config lists them."""
    kept = [
        name.removesuffix(".weight")
        for name, place in checkpoint_destinations(model, set()).items()
        if name.endswith(".weight") and place.tensor.dim() > 1 and not is_quantized(place)
    ]
    return sorted({*kept, "lm_head"} - {"model.embed_tokens"})  # no head is written in INT8, and a tied one is a module


def planned_bytes(model: Transformer, kept_bytes_per_value: int) -> Mapping[str, WeightBytes]:
    """Sizes from shapes alone: of the `quantized` weights with their scales, of those `kept`, and of `all`.

    Args:
        model: on the meta device.
        kept_bytes_per_value: of what is not quantised.
    """
    sums = {"quantized": [0, 0], "kept": [0, 0]}
    for place in checkpoint_destinations(model, set()).values():
        shape = place.tensor.shape
        count = prod(shape)
        if is_quantized(place):
            kind, stored = "quantized", count + prod(shape[:-1]) * SCALE_BYTES
        else:
            kind, stored = "kept", count * kept_bytes_per_value
        sums[kind][0] += count * FLOAT32_BYTES
        sums[kind][1] += stored
    sums["all"] = [sum(pair) for pair in zip(*sums.values(), strict=True)]
    return {kind: WeightBytes(*pair) for kind, pair in sums.items()}
