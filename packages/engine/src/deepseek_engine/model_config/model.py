"""ModelConfig: the shape of a model, part by part, whatever file it was read from."""

from dataclasses import dataclass
from typing import Literal

from deepseek_engine.kv_cache.specs import CacheSpec
from deepseek_engine.model_config.attention import AttentionConfig
from deepseek_engine.model_config.feed_forward import FeedForwardConfig
from deepseek_engine.model_config.quantization import QuantizationConfig
from deepseek_engine.model_config.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One decoder layer."""

    attention: AttentionConfig
    feed_forward: FeedForwardConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's shape.

    Attributes:
        architecture: the checkpoint's own name for it; it says how tensors are called, not how they are used.
        norm_eps: of the two norms of each layer.
        final_norm_eps: of the norm before the head.
        sliding_window: keys that a token sees at most; attention here is full, so a context beyond it is refused.
        num_mtp_layers: extra layers for multi-token prediction behind the last one; their tensors are left unread,
            but for those of the first where `runs_mtp`.
        mtp_layer: what each of those is.
        runs_mtp: whether the first of them is part of the model, to guess tokens for speculation.
        quantization: how the checkpoint stores its weights; None as floats.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    rope: RopeConfig
    norm_eps: float
    final_norm_eps: float
    norm: Literal["rms", "layer"] = "rms"
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False
    sliding_window: int | None = None
    num_mtp_layers: int = 0
    mtp_layer: LayerConfig | None = None
    runs_mtp: bool = False
    quantization: QuantizationConfig | None = None

    @property
    def computed_layers(self) -> tuple[LayerConfig, ...]:
        """Those of the model; that for multi-token prediction comes last, if it is to guess."""
        guessing = (self.mtp_layer,) if self.runs_mtp and self.mtp_layer is not None else ()
        return (*self.layers, *guessing)

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """What each of `computed_layers` keeps of a token."""
        return tuple(layer.attention.cache_spec for layer in self.computed_layers)

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that the KV cache holds for one token, all layers together."""
        return sum(spec.num_elements for spec in self.cache_specs)

    def kv_bytes_per_token(self, element_bytes: int, *, is_int8: bool) -> int:
        """Bytes that the KV cache takes for one token, all layers together."""
        return sum(spec.num_bytes(element_bytes, is_int8=is_int8) for spec in self.cache_specs)
