"""Which models the CPU kernels can run whole, and why not the others."""

from collections.abc import Iterable

import torch

from deepseek_engine.kernels.cpu.attention import GROUP_TOKENS
from deepseek_engine.kernels.cpu.packed_matrix import GATE_GROUP
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.model_config import (
    DenseConfig,
    FeedForwardConfig,
    GroupedQueryConfig,
    LatentConfig,
    MixtureOfAttentionConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
)
from deepseek_engine.models.transformer import Transformer


def obstacle(model: Transformer, cache: KVCache) -> str | None:
    """What keeps a model from the kernels, as the end of a sentence; None if nothing does."""
    config = model.config
    if model.group.size > 1:
        return f"they run whole models, not a part for each of {model.group.size} ranks"
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
    match attention:
        case GroupedQueryConfig():
            return _of_grouped_queries(attention, config.rope)
        case LatentConfig():
            return _of_latent(attention)
        case MixtureOfAttentionConfig():
            return _of_asking(attention, config)


def _of_grouped_queries(attention: GroupedQueryConfig, rope: RopeConfig) -> str | None:
    if attention.head_dim % GROUP_TOKENS:
        return f"head_dim={attention.head_dim} is not a multiple of {GROUP_TOKENS}"
    if rope.dim != attention.head_dim:
        return f"only {rope.dim} of {attention.head_dim} features of a head rotate"
    return None


def _of_latent(attention: LatentConfig) -> str | None:
    if attention.kv_lora_rank % GROUP_TOKENS:
        return f"kv_lora_rank={attention.kv_lora_rank} is not a multiple of {GROUP_TOKENS}"
    width = attention.num_attention_heads * attention.v_head_dim
    if attention.qk_nope_head_dim % 2 or (attention.q_lora_rank or 0) % 4 or width % 4:
        return (
            f"qk_nope_head_dim={attention.qk_nope_head_dim} is odd, or q_lora_rank={attention.q_lora_rank} or the "
            f"width of all heads' values, {width}, is not a multiple of 4"
        )
    if attention.indexer is not None and attention.indexer.index_head_dim % 2:
        return f"index_head_dim={attention.indexer.index_head_dim} is odd"
    return None


def _of_asking(attention: MixtureOfAttentionConfig, config: ModelConfig) -> str | None:
    if attention.head_dim % GROUP_TOKENS or config.rope.dim != attention.head_dim:
        return f"head_dim={attention.head_dim} is not a multiple of {GROUP_TOKENS}, or does not rotate as a whole"
    feed_forwards = [layer.feed_forward for layer in config.layers]
    if any(not isinstance(each, MoEConfig) or each.router != attention.router for each in feed_forwards):
        return "its mixtures of attention heads and of feed-forwards are routed differently"
    return None


def _of_feed_forwards(configs: Iterable[FeedForwardConfig]) -> str | None:
    mixture: FeedForwardConfig | None = None
    for config in configs:
        if config.intermediate_size % GATE_GROUP:
            return f"intermediate_size={config.intermediate_size} of a feed-forward is not a multiple of {GATE_GROUP}"
        if isinstance(config, DenseConfig):
            continue
        if mixture not in (None, config):
            return "its layers have different mixtures of experts"
        mixture = config
    return None
