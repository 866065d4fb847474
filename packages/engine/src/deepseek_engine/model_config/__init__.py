"""The shape of a model: `ModelConfig`, its parts, and a reader for each family's config.json. Without torch."""

from deepseek_engine.model_config.attention import (
    AttentionConfig,
    GroupedQueryConfig,
    IndexerConfig,
    LatentConfig,
    MixtureOfAttentionConfig,
)
from deepseek_engine.model_config.feed_forward import DenseConfig, FeedForwardConfig, MoEConfig, RouterConfig
from deepseek_engine.model_config.model import LayerConfig, ModelConfig
from deepseek_engine.model_config.quantization import Fp8BlocksConfig, Int8ChannelsConfig, QuantizationConfig
from deepseek_engine.model_config.reader import SUPPORTED_ARCHITECTURES, parse_model_config, read_model_config
from deepseek_engine.model_config.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "AttentionConfig",
    "DenseConfig",
    "FeedForwardConfig",
    "Fp8BlocksConfig",
    "GroupedQueryConfig",
    "IndexerConfig",
    "Int8ChannelsConfig",
    "LatentConfig",
    "LayerConfig",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MixtureOfAttentionConfig",
    "MoEConfig",
    "ModelConfig",
    "QuantizationConfig",
    "RopeConfig",
    "RopeScaling",
    "RouterConfig",
    "YarnScaling",
    "parse_model_config",
    "read_model_config",
]
