"""Which ranks a model can be cut for, and the shape of one rank's part.

Attention is cut by heads, feed-forwards and every expert by their inner width, the head by words of the vocabulary. The
embedding, norms, routers, latent projections, indexers and the residual stream are on every rank.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
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


def part_of_rank(model: ModelConfig, config: EngineConfig) -> ModelConfig:
    """The shape of what each rank holds; it is the same on all of them.

    Raises:
        ModelLoadError: the model cannot be cut so, or a setting does not go with it.
    """
    size = config.tensor_parallel_size
    if size == 1:
        return model
    if config.enable_lora:
        raise ModelLoadError(
            f"enable_lora is not supported with tensor_parallel_size={size}: adapters are not cut for ranks; leave out "
            "one of the two"
        )
    misfit = next(_misfits(model, size), None)
    if misfit is not None:
        sizes = [n for n in range(1, _most_ranks(model) + 1) if next(_misfits(model, n), None) is None]
        raise ModelLoadError(
            f"tensor_parallel_size={size} does not fit the model: {misfit}; sizes that fit are "
            f"{', '.join(map(str, sizes))}"
        )
    layers = (LayerConfig(_attention(x.attention, size), _feed_forward(x.feed_forward, size)) for x in model.layers)
    return replace(model, layers=tuple(layers))


def threads_of_rank(config: EngineConfig) -> int | None:
    """CPU threads of each rank; the ranks share those of the settings or the machine. None is torch's own choice."""
    if config.tensor_parallel_size == 1:
        return config.num_threads
    return max((config.num_threads or os.cpu_count() or 1) // config.tensor_parallel_size, 1)


def _attention(attention: AttentionConfig, size: int) -> AttentionConfig:
    match attention:
        case GroupedQueryConfig():
            num_kv_heads = attention.num_key_value_heads
            return replace(
                attention,
                num_attention_heads=attention.num_attention_heads // size,
                num_key_value_heads=max(num_kv_heads // size, 1),
                kv_replicas=max(size // num_kv_heads, 1),
            )
        case LatentConfig():
            return replace(attention, num_attention_heads=attention.num_attention_heads // size)
        case MixtureOfAttentionConfig():
            return replace(attention, num_key_value_heads=attention.num_key_value_heads // size)


def _feed_forward(feed_forward: FeedForwardConfig, size: int) -> FeedForwardConfig:
    width = feed_forward.intermediate_size // size
    match feed_forward:
        case DenseConfig():
            return replace(feed_forward, intermediate_size=width)
        case MoEConfig():
            shared = feed_forward.shared_intermediate_size // size
            return replace(feed_forward, intermediate_size=width, shared_intermediate_size=shared)


def _most_ranks(model: ModelConfig) -> int:
    """No rank is without a head."""
    return min(_num_heads(layer.attention) for layer in model.layers)


def _num_heads(attention: AttentionConfig) -> int:
    if isinstance(attention, MixtureOfAttentionConfig):
        return attention.num_key_value_heads
    return attention.num_attention_heads


def _misfits(model: ModelConfig, size: int) -> Iterator[str]:
    for layer in model.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        name = "num_key_value_heads" if isinstance(attention, MixtureOfAttentionConfig) else "num_attention_heads"
        divided = {name: _num_heads(attention), "intermediate_size": feed_forward.intermediate_size}
        if isinstance(feed_forward, MoEConfig):
            divided["width of the shared experts"] = feed_forward.shared_intermediate_size
        yield from (f"{name}={value} is not a multiple of it" for name, value in divided.items() if value % size)
        if isinstance(attention, GroupedQueryConfig):
            num_kv_heads = attention.num_key_value_heads
            if num_kv_heads % size and size % num_kv_heads:
                yield f"num_key_value_heads={num_kv_heads} is neither a multiple nor a divisor of it"
