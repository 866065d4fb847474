"""JetMoE: mixtures of experts in attention and in the feed-forward."""

from deepseek_engine.model_config.attention import MixtureOfAttentionConfig
from deepseek_engine.model_config.feed_forward import MoEConfig, RouterConfig
from deepseek_engine.model_config.fields import Fields
from deepseek_engine.model_config.model import LayerConfig, ModelConfig
from deepseek_engine.model_config.rope import read_rope

LAYER_NORM_EPS = 1e-6
"""Of the norms within layers; `rms_norm_eps` is for the last one only."""


def read_jetmoe(fields: Fields) -> ModelConfig:
    """JetMoeForCausalLM (arXiv 2404.07413). The weights of the chosen experts are a softmax over them alone."""
    num_experts, top_k = fields.integer("num_local_experts", 8), fields.integer("num_experts_per_tok", 2)
    attention = MixtureOfAttentionConfig(
        num_key_value_heads=fields.integer("num_key_value_heads", 16),
        head_dim=fields.integer("kv_channels", 128),
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
    )
    router = RouterConfig(kind="softmax", num_experts=num_experts, num_experts_per_tok=top_k, norm_topk_prob=True)
    feed_forward = MoEConfig(router=router, intermediate_size=fields.integer("intermediate_size"), output_bias=True)
    return ModelConfig(
        architecture=fields.texts("architectures")[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        layers=(LayerConfig(attention, feed_forward),) * fields.integer("num_hidden_layers"),
        rope=read_rope(fields, attention.head_dim),
        norm_eps=LAYER_NORM_EPS,
        final_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
    )
