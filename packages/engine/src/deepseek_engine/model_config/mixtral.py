"""Mixtral and PhiMoE: grouped-query attention and a mixture of experts in every layer."""

from dataclasses import replace

from deepseek_engine.model_config.feed_forward import MoEConfig, RouterConfig
from deepseek_engine.model_config.fields import Fields
from deepseek_engine.model_config.llama import decoder, grouped_query_attention
from deepseek_engine.model_config.model import ModelConfig


def read_mixtral(fields: Fields) -> ModelConfig:
    """MixtralForCausalLM."""
    router = RouterConfig(
        kind="softmax",
        num_experts=fields.integer("num_local_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        norm_topk_prob=True,
    )
    return decoder(
        fields,
        grouped_query_attention(fields, qkv_bias=False, output_bias=False),
        MoEConfig(router=router, intermediate_size=fields.integer("intermediate_size")),
        sliding_window=fields.integer("sliding_window", None),
    )


def read_phimoe(fields: Fields) -> ModelConfig:
    """PhimoeForCausalLM: sparsemixer routing, layer norms with bias, and biases where the file asks for them."""
    router = RouterConfig(
        kind="sparsemixer",
        num_experts=fields.integer("num_local_experts", 16),
        num_experts_per_tok=fields.integer("num_experts_per_tok", 2),
        jitter=fields.number("router_jitter_noise", 0.01),
    )
    bias = fields.flag("attention_bias", default=False)
    config = decoder(
        fields,
        grouped_query_attention(fields, qkv_bias=bias, output_bias=bias),
        MoEConfig(router=router, intermediate_size=fields.integer("intermediate_size")),
        sliding_window=fields.integer("sliding_window", None),
        default_theta=1e6,
    )
    return replace(config, norm="layer", lm_head_bias=fields.flag("lm_head_bias", default=False))
