"""Which linear layer of a model is meant by which Hugging Face module name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from torch import nn

from deepseek_engine.layers.linear import Linear
from deepseek_engine.models.names import Destination, checkpoint_destinations
from deepseek_engine.models.transformer import Transformer

UNSUPPORTED: Final = {
    "embed_tokens": "adapters of the embedding are not served",
    "lm_head": "adapters of the output layer are not served",
    "gate": "adapters of a router are not served",
    "kv_b_proj": "adapters of kv_b_proj are not served: it is folded into the attention",
}
"""Last parts of module names that PEFT can target and this engine cannot."""


@dataclass(frozen=True, slots=True)
class Target:
    """One projection.

    Attributes:
        layer_name: our own name of the layer that computes it, with others of the same input where they are fused.
        layer: that layer.
        columns: the projection's part of the layer's output.
        in_features: its inputs.
    """

    layer_name: str
    layer: Linear
    columns: slice
    in_features: int

    @property
    def out_features(self) -> int:
        """Outputs of the projection alone."""
        return self.columns.stop - self.columns.start


def adaptable_projections(model: Transformer) -> dict[str, Target]:
    """Every projection that an adapter may change, by its module's name: `model.layers.0.self_attn.q_proj`.

    Not those of the layer for multi-token prediction: it guesses without adapters, and guesses are verified with them.
    """
    guessing = set[nn.Module]() if model.mtp is None else set(model.mtp.modules())
    names = {module: name for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules())}
    return {
        name.removesuffix(".weight"): _target(to.module, names[to.module], to)
        for name, to in checkpoint_destinations(model, set()).items()
        if isinstance(to.module, Linear)
        and to.parameter == "weight"
        and to.module is not model.head
        and to.module not in guessing
    }


def _target(layer: Linear, name: str, destination: Destination) -> Target:
    rows = destination.index[0] if destination.index else slice(0, sum(layer.out_features))
    assert isinstance(rows, slice)
    return Target(name, layer, rows, layer.weight.shape[1])
