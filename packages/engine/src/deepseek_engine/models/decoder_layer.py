"""One decoder layer, whose parts are chosen by its config.

T tokens of the step, H hidden_size.
"""

import torch
from torch import Tensor, nn

from deepseek_engine.kernels.torch_attention import AttentionMetadata
from deepseek_engine.layers.attention import GroupedQueryAttention
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.latent_attention import LatentAttention
from deepseek_engine.layers.mixture_of_attention import MixtureOfAttention
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.layers.norm import hidden_norm
from deepseek_engine.model_config import (
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    GroupedQueryConfig,
    LatentConfig,
    LayerConfig,
    MixtureOfAttentionConfig,
    ModelConfig,
    MoEConfig,
)
from deepseek_engine.parallel.group import ParallelGroup

Attention = GroupedQueryAttention | LatentAttention | MixtureOfAttention
FeedForward = GatedFeedForward | MixtureOfExperts


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normalised residual stream."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, dtype: torch.dtype, group: ParallelGroup) -> None:
        super().__init__()
        self.group = group
        self.attention_norm = hidden_norm(config, dtype)
        self.attention = build_attention(layer.attention, config.hidden_size, dtype)
        self.feed_forward_norm = hidden_norm(config, dtype)
        self.feed_forward = build_feed_forward(layer.feed_forward, config.hidden_size, dtype)

    def forward(self, x_TH: Tensor, cos_sin: Tensor, cache: tuple[Tensor, ...], metadata: AttentionMetadata) -> Tensor:
        """[T, H] to [T, H]."""
        attended_TH = self.attention(self.attention_norm(x_TH), cos_sin, cache, metadata)
        x_TH = x_TH + self.group.all_reduce(attended_TH)
        return x_TH + self.group.all_reduce(self.feed_forward(self.feed_forward_norm(x_TH)))


def build_attention(config: AttentionConfig, hidden_size: int, dtype: torch.dtype) -> Attention:
    """The attention that a layer's config asks for."""
    match config:
        case GroupedQueryConfig():
            return GroupedQueryAttention(config, hidden_size, dtype)
        case LatentConfig():
            return LatentAttention(config, hidden_size, dtype)
        case MixtureOfAttentionConfig():
            return MixtureOfAttention(config, hidden_size, dtype)


def build_feed_forward(config: FeedForwardConfig, hidden_size: int, dtype: torch.dtype) -> FeedForward:
    """The feed-forward that a layer's config asks for."""
    match config:
        case DenseConfig():
            return GatedFeedForward(hidden_size, config.intermediate_size, bias=config.bias, dtype=dtype)
        case MoEConfig():
            return MixtureOfExperts(config, hidden_size, dtype)
