"""Llama, Qwen2 and Qwen3: dense decoders with grouped-query attention."""

from deepseek_engine.model_config.attention import GroupedQueryConfig
from deepseek_engine.model_config.feed_forward import DenseConfig, FeedForwardConfig
from deepseek_engine.model_config.fields import Fields
from deepseek_engine.model_config.model import LayerConfig, ModelConfig
from deepseek_engine.model_config.rope import read_rope


def read_llama(fields: Fields) -> ModelConfig:
    """LlamaForCausalLM."""
    bias = fields.flag("attention_bias", default=False)
    return decoder(
        fields,
        grouped_query_attention(fields, qkv_bias=bias, output_bias=bias),
        dense(fields, bias=fields.flag("mlp_bias", default=False)),
        sliding_window=fields.integer("sliding_window", None),
    )


def read_qwen2(fields: Fields) -> ModelConfig:
    """Qwen2ForCausalLM: queries, keys and values always have biases, outputs never."""
    attention = grouped_query_attention(fields, qkv_bias=True, output_bias=False)
    return decoder(fields, attention, dense(fields), sliding_window=_qwen_window(fields))


def read_qwen3(fields: Fields) -> ModelConfig:
    """Qwen3ForCausalLM: each head's query and key are normalised before they are rotated."""
    bias = fields.flag("attention_bias", default=False)
    qk_norm_eps = fields.number("rms_norm_eps", 1e-6)
    attention = grouped_query_attention(
        fields, qkv_bias=bias, output_bias=bias, default_head_dim=128, qk_norm_eps=qk_norm_eps
    )
    return decoder(fields, attention, dense(fields), sliding_window=_qwen_window(fields))


def decoder(
    fields: Fields,
    attention: GroupedQueryConfig,
    feed_forward: FeedForwardConfig | tuple[FeedForwardConfig, ...],
    *,
    sliding_window: int | None = None,
    default_theta: float = 10000.0,
) -> ModelConfig:
    """A decoder of equal layers, or with a feed-forward for each, and an RMS norm before each part."""
    num_layers = fields.integer("num_hidden_layers")
    each = feed_forward if isinstance(feed_forward, tuple) else (feed_forward,) * num_layers
    norm_eps = fields.number("rms_norm_eps", 1e-6)
    return ModelConfig(
        architecture=fields.texts("architectures")[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        layers=tuple(LayerConfig(attention, layer) for layer in each),
        rope=read_rope(fields, attention.head_dim, default_theta),
        norm_eps=norm_eps,
        final_norm_eps=norm_eps,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        sliding_window=sliding_window,
    )


def grouped_query_attention(
    fields: Fields,
    *,
    qkv_bias: bool,
    output_bias: bool,
    default_head_dim: int | None = None,
    qk_norm_eps: float | None = None,
) -> GroupedQueryConfig:
    """The attention that the usual fields describe."""
    num_heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", default_head_dim or fields.integer("hidden_size") // num_heads)
    return GroupedQueryConfig(
        num_attention_heads=num_heads,
        num_key_value_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm_eps=qk_norm_eps,
    )


def dense(fields: Fields, *, bias: bool = False) -> DenseConfig:
    """The gated network that the usual fields describe."""
    return DenseConfig(intermediate_size=fields.integer("intermediate_size"), bias=bias)


def _qwen_window(fields: Fields) -> int | None:
    """Qwen's files name a window even where it is off; only layers from `max_window_layers` on would have it."""
    layer_types = fields.texts("layer_types")
    if layer_types:
        is_on = "sliding_attention" in layer_types
    else:
        first = fields.integer("max_window_layers", 28)
        is_on = fields.flag("use_sliding_window", default=False) and first < fields.integer("num_hidden_layers")
    return fields.integer("sliding_window", None) if is_on else None
