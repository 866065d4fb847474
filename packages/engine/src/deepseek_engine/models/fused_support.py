"""Which models the CPU kernels can run whole, and why not the others."""

from collections.abc import Iterable

import torch

from deepseek_engine.kernels.cpu.attention import GROUP_TOKENS
from deepseek_engine.kernels.cpu.packed_matrix import GATE_GROUP
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.model_config import (
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    GroupedQueryConfig,
    ModelConfig,
)
from deepseek_engine.models.transformer import Transformer


def obstacle(model: Transformer, cache: KVCache) -> str | None:
    """What keeps a model from the kernels, as the end of a sentence; None if nothing does."""
    config = model.config
    if model.embedding.dtype is not torch.bfloat16 or model.embedding.device.type != "cpu":
        return f"they take bfloat16 on the CPU, not {model.embedding.dtype} on {model.embedding.device.type}"
    if cache.block_size % GROUP_TOKENS:
        return f"they take KV blocks of a multiple of {GROUP_TOKENS} tokens, not {cache.block_size}"
    if config.hidden_size % 4:
        return f"hidden_size={config.hidden_size} is not a multiple of 4"
    return _of_attentions(config) or _of_feed_forwards(layer.feed_forward for layer in config.layers)


def _of_attentions(config: ModelConfig) -> str | None:
    attention = config.layers[0].attention
    if any(layer.attention != attention for layer in config.layers):
        return "its layers differ in attention"
    return _of_attention(attention, config)


def _of_attention(attention: AttentionConfig, config: ModelConfig) -> str | None:
    if not isinstance(attention, GroupedQueryConfig):
        return f"they do not know its attention ({type(attention).__name__.removesuffix('Config')})"
    if attention.head_dim % GROUP_TOKENS:
        return f"head_dim={attention.head_dim} is not a multiple of {GROUP_TOKENS}"
    if config.rope.dim != attention.head_dim:
        return f"only {config.rope.dim} of {attention.head_dim} features of a head rotate"
    return None


def _of_feed_forwards(configs: Iterable[FeedForwardConfig]) -> str | None:
    mixture: FeedForwardConfig | None = None
    for config in configs:
        if config.intermediate_size % GATE_GROUP:
            return f"intermediate_size={config.intermediate_size} of a feed-forward is not a multiple of {GATE_GROUP}"
        if isinstance(config, DenseConfig):
            continue
        if config.output_bias:
            return "its mixture of experts has a bias"
        if mixture not in (None, config):
            return "its layers have different mixtures of experts"
        mixture = config
    return None
