"""DeepSeek's families: MoE-16B, V2 and V2-Lite, V3 (with R1 and V3.1), and V3.2."""

from dataclasses import replace

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_config.attention import IndexerConfig, LatentConfig
from deepseek_engine.model_config.feed_forward import DenseConfig, FeedForwardConfig, MoEConfig, RouterConfig
from deepseek_engine.model_config.fields import Fields
from deepseek_engine.model_config.llama import decoder, grouped_query_attention
from deepseek_engine.model_config.model import LayerConfig, ModelConfig
from deepseek_engine.model_config.rope import read_rope, rope_parameters, rope_type, yarn_mscale


def read_deepseek_moe(fields: Fields) -> ModelConfig:
    """DeepseekForCausalLM, of DeepSeekMoE-16B (arXiv 2401.06066): Llama's attention, shared and routed experts."""
    _expect(fields, "scoring_func", "softmax", "softmax")
    bias = fields.flag("attention_bias", default=False)
    router = None
    if "n_routed_experts" in fields:
        router = RouterConfig(
            kind="softmax",
            num_experts=fields.integer("n_routed_experts"),
            num_experts_per_tok=fields.integer("num_experts_per_tok"),
            norm_topk_prob=fields.flag("norm_topk_prob", default=False),
        )
    attention = grouped_query_attention(fields, qkv_bias=bias, output_bias=bias)
    return decoder(fields, attention, _feed_forwards(fields, router))


def read_deepseek_v2(fields: Fields) -> ModelConfig:
    """DeepseekV2ForCausalLM (arXiv 2405.04434): latent attention, softmax routing with or without groups."""
    _expect(fields, "scoring_func", "softmax", "softmax")
    method = _expect(fields, "topk_method", "greedy", "greedy", "group_limited_greedy")
    if fields.flag("norm_topk_prob", default=False):
        # transformers ignores the field and DeepSeek's own code drops the scaling factor: there is no one right answer.
        raise ModelLoadError("norm_topk_prob=True is not supported for DeepseekV2ForCausalLM")
    is_grouped = method == "group_limited_greedy"
    router = RouterConfig(
        kind="softmax",
        num_experts=fields.integer("n_routed_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        n_group=fields.integer("n_group") if is_grouped else 1,
        topk_group=fields.integer("topk_group") if is_grouped else 1,
        routed_scaling_factor=fields.number("routed_scaling_factor", 1.0),
        in_float32=True,
    )
    feed_forwards = _feed_forwards(fields, router, bias=fields.flag("mlp_bias", default=False))
    return _latent_decoder(fields, _latent_attention(fields), feed_forwards)


def read_deepseek_v3(fields: Fields) -> ModelConfig:
    """DeepseekV3ForCausalLM (arXiv 2412.19437): sigmoid routing with a bias for choice, and a layer for two tokens."""
    _expect(fields, "scoring_func", "sigmoid", "sigmoid")
    _expect(fields, "topk_method", "noaux_tc", "noaux_tc")
    router = RouterConfig(
        kind="sigmoid",
        num_experts=fields.integer("n_routed_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        n_group=fields.integer("n_group", 1),
        topk_group=fields.integer("topk_group", 1),
        norm_topk_prob=fields.flag("norm_topk_prob", default=True),
        routed_scaling_factor=fields.number("routed_scaling_factor", 1.0),
        in_float32=True,
    )
    num_mtp_layers = fields.integer("num_nextn_predict_layers", fields.integer("num_mtp_layers", 1))
    attention = _latent_attention(fields)
    config = _latent_decoder(fields, attention, _feed_forwards(fields, router))
    # Experts, even where all layers of the model itself are dense.
    return replace(config, num_mtp_layers=num_mtp_layers, mtp_layer=LayerConfig(attention, _mixture(fields, router)))


def read_deepseek_v32(fields: Fields) -> ModelConfig:
    """DeepseekV32ForCausalLM: V3 whose queries see only the keys that an indexer picks (DeepSeek Sparse Attention)."""
    config = read_deepseek_v3(fields)
    indexer = IndexerConfig(
        index_n_heads=fields.integer("index_n_heads", 64),
        index_head_dim=fields.integer("index_head_dim", 128),
        index_topk=fields.integer("index_topk", 2048),
    )
    attention = replace(_latent_attention(fields), indexer=indexer)
    if attention.q_lora_rank is None:
        raise ModelLoadError("q_lora_rank is missing: the indexer of DeepseekV32ForCausalLM reads the compressed query")
    assert config.mtp_layer is not None
    return replace(
        config,
        layers=tuple(replace(layer, attention=attention) for layer in config.layers),
        mtp_layer=replace(config.mtp_layer, attention=attention),
    )


def _latent_decoder(
    fields: Fields, attention: LatentConfig, feed_forwards: tuple[FeedForwardConfig, ...]
) -> ModelConfig:
    norm_eps = fields.number("rms_norm_eps", 1e-6)
    return ModelConfig(
        architecture=fields.texts("architectures")[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        layers=tuple(LayerConfig(attention, feed_forward) for feed_forward in feed_forwards),
        rope=read_rope(fields, attention.qk_rope_head_dim),
        norm_eps=norm_eps,
        final_norm_eps=norm_eps,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
    )


def _latent_attention(fields: Fields) -> LatentConfig:
    nope, rope = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
    return LatentConfig(
        num_attention_heads=fields.integer("num_attention_heads"),
        q_lora_rank=fields.integer("q_lora_rank", None),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=fields.integer("v_head_dim"),
        softmax_scale=_softmax_scale(fields, nope + rope),
        rope_interleave=fields.flag("rope_interleave", default=True),
        attention_bias=fields.flag("attention_bias", default=False),
    )


def _softmax_scale(fields: Fields, head_dim: int) -> float:
    """The usual scale; with `mscale_all_dim`, YaRN's temperature twice over, for the query and for the key."""
    parameters = rope_parameters(fields)
    all_dim = parameters.number("mscale_all_dim", 0.0)
    if rope_type(parameters) == "default" or not all_dim:
        return head_dim**-0.5
    return head_dim**-0.5 * yarn_mscale(parameters.number("factor"), all_dim) ** 2


def _feed_forwards(fields: Fields, router: RouterConfig | None, *, bias: bool = False) -> tuple[FeedForwardConfig, ...]:
    """A dense network in the first layers, experts in the others, or in every `moe_layer_freq`-th of them."""
    num_layers = fields.integer("num_hidden_layers")
    dense = DenseConfig(intermediate_size=fields.integer("intermediate_size"), bias=bias)
    if router is None:
        return (dense,) * num_layers
    moe = _mixture(fields, router, bias=bias)
    first, frequency = fields.integer("first_k_dense_replace", 0), fields.integer("moe_layer_freq", 1)
    kinds = fields.texts("mlp_layer_types") or tuple(
        "sparse" if index >= first and index % frequency == 0 else "dense" for index in range(num_layers)
    )
    return tuple(moe if kind == "sparse" else dense for kind in kinds[:num_layers])


def _mixture(fields: Fields, router: RouterConfig, *, bias: bool = False) -> MoEConfig:
    width = fields.integer("moe_intermediate_size")
    return MoEConfig(
        router=router,
        intermediate_size=width,
        shared_intermediate_size=width * fields.integer("n_shared_experts", 0),
        shared_bias=bias,
    )


def _expect(fields: Fields, name: str, default: str, *supported: str) -> str:
    value = fields.text(name, default)
    if value not in supported:
        raise ModelLoadError(f"{name}={value!r} is not supported for this architecture: {', '.join(supported)} is")
    return value
