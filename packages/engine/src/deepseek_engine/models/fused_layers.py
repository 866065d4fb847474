"""A loaded layer's weights, packed for the CPU kernels."""

from torch import Tensor

from deepseek_engine.kernels.cpu.layer_weights import (
    AskingWeights,
    DecoderShape,
    DenseWeights,
    ExpertWeights,
    GroupedQueryShape,
    GroupedQueryWeights,
    IndexerWeights,
    LatentWeights,
    LayerWeights,
    NormWeights,
)
from deepseek_engine.kernels.cpu.library import SIGMOID, SOFTMAX, SPARSEMIXER, IndexerShape, LatentShape, Routing
from deepseek_engine.kernels.cpu.packed_matrix import PackedMatrix
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.indexer import Indexer
from deepseek_engine.layers.latent_attention import LatentAttention
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.mixture_of_attention import MixtureOfAttention
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.layers.norm import LayerNorm, RMSNorm
from deepseek_engine.model_config import (
    AttentionConfig,
    DenseConfig,
    LatentConfig,
    MixtureOfAttentionConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
)
from deepseek_engine.models.decoder_layer import Attention, DecoderLayer

_KINDS = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "sparsemixer": SPARSEMIXER}


def decoder_shape(config: ModelConfig) -> DecoderShape:
    """The sizes of a model that the kernels can run."""
    mixture = next((layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, MoEConfig)), None)
    return DecoderShape(
        hidden_size=config.hidden_size,
        attention=_attention_shape(config.layers[0].attention),
        indexer=_indexer_shape(config.layers[0].attention),
        dense_size=max(_dense_size(layer.feed_forward) for layer in config.layers),
        expert_size=0 if mixture is None else mixture.intermediate_size,
        routing=None if mixture is None else routing_rule(mixture.router),
    )


def pack_layer(layer: DecoderLayer) -> LayerWeights:
    """Pack one layer; its own weights are left as they are."""
    return LayerWeights(
        attention_norm=pack_norm(layer.attention_norm),
        attention=_attention(layer.attention),
        feed_forward_norm=pack_norm(layer.feed_forward_norm),
        feed_forward=_feed_forward(layer.feed_forward),
    )


def pack_norm(norm: RMSNorm | LayerNorm) -> NormWeights:
    """A norm as the kernels take it."""
    return NormWeights(norm.weight.data, norm.bias.data if isinstance(norm, LayerNorm) else None, norm.eps)


def pack_linear(linear: Linear, *, interleave: bool = False) -> PackedMatrix:
    """A linear layer with its bias and scales."""
    return pack(linear.weight, linear.bias, linear.weight_scale, interleave=interleave)


def pack(
    weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, *, interleave: bool = False
) -> PackedMatrix:
    """As `PackedMatrix.pack`, of a matrix whose size was looked at before."""
    packed = PackedMatrix.pack(weight, bias, scale, interleave=interleave)
    assert packed is not None, "fused_support has looked at the sizes"
    return packed


def routing_rule(config: RouterConfig) -> Routing:
    """How experts are chosen, as the kernels take it."""
    return Routing(
        kind=_KINDS[config.kind],
        num_experts=config.num_experts,
        experts_per_token=config.num_experts_per_tok,
        num_groups=config.n_group,
        groups_per_token=config.topk_group,
        normalise=config.norm_topk_prob,
        scaling=config.routed_scaling_factor,
        jitter=config.jitter,
    )


def _indexer_shape(config: AttentionConfig) -> IndexerShape | None:
    if not isinstance(config, LatentConfig) or config.indexer is None:
        return None
    indexer = config.indexer
    return IndexerShape(indexer.index_n_heads, indexer.index_head_dim, config.qk_rope_head_dim, indexer.index_topk)


def _attention_shape(config: AttentionConfig) -> GroupedQueryShape | LatentShape:
    if isinstance(config, LatentConfig):
        return LatentShape(
            num_heads=config.num_attention_heads,
            query_rank=config.q_lora_rank or 0,
            kv_rank=config.kv_lora_rank,
            nope_dim=config.qk_nope_head_dim,
            rope_dim=config.qk_rope_head_dim,
            value_dim=config.v_head_dim,
            is_interleaved=config.rope_interleave,
            scale=config.softmax_scale,
        )
    if isinstance(config, MixtureOfAttentionConfig):
        return GroupedQueryShape(
            num_heads=config.num_key_value_heads * config.num_experts_per_tok,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            is_asking=True,
        )
    return GroupedQueryShape(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5,
    )


def _attention(attention: Attention) -> GroupedQueryWeights | LatentWeights | AskingWeights:
    if isinstance(attention, LatentAttention):
        return _latent(attention)
    if isinstance(attention, MixtureOfAttention):
        return _asking(attention)
    return GroupedQueryWeights(
        qkv=pack_linear(attention.qkv),
        output=pack_linear(attention.output),
        q_norm=None if attention.q_norm is None else pack_norm(attention.q_norm),
        k_norm=None if attention.k_norm is None else pack_norm(attention.k_norm),
    )


def _latent(attention: LatentAttention) -> LatentWeights:
    key_b, value_b = attention.folded()
    return LatentWeights(
        input=pack_linear(attention.input),
        query_norm=None if attention.q_norm is None else pack_norm(attention.q_norm),
        query=None if attention.q_b is None else pack_linear(attention.q_b),
        latent_norm=pack_norm(attention.kv_norm),
        fold_keys=[pack(of_head.T) for of_head in key_b],
        fold_values=[pack(of_head) for of_head in value_b],
        output=pack_linear(attention.output),
        indexer=None if attention.indexer is None else _indexer(attention.indexer),
    )


def _indexer(indexer: Indexer) -> IndexerWeights:
    return IndexerWeights(
        query=pack_linear(indexer.query),
        key=pack_linear(indexer.key),
        key_norm=pack_norm(indexer.key_norm),
        head_weights=pack(indexer.head_weights),
    )


def _asking(attention: MixtureOfAttention) -> AskingWeights:
    ids = range(attention.queries.shape[0])
    return AskingWeights(
        router=pack(attention.router.weight),
        kv=pack_linear(attention.kv),
        queries=[pack(attention.queries[i], None, _row(attention.queries_scale, i)) for i in ids],
        outputs=[pack(attention.outputs[i], None, _row(attention.outputs_scale, i)) for i in ids],
        bias=attention.bias.data,
    )


def _feed_forward(module: GatedFeedForward | MixtureOfExperts) -> DenseWeights | ExpertWeights:
    if isinstance(module, GatedFeedForward):
        return _dense(module)
    experts = module.experts
    ids = range(experts.gate_up.shape[0])
    return ExpertWeights(
        router=pack(module.router.weight),
        choice_bias=None if module.router.choice_bias is None else module.router.choice_bias.data,
        gate_up=[pack(experts.gate_up[i], None, _row(experts.gate_up_scale, i), interleave=True) for i in ids],
        down=[pack(experts.down[i], None, _row(experts.down_scale, i)) for i in ids],
        shared=None if module.shared is None else _dense(module.shared),
        bias=None if module.bias is None else module.bias.data,
    )


def _dense(module: GatedFeedForward) -> DenseWeights:
    return DenseWeights(gate_up=pack_linear(module.gate_up, interleave=True), down=pack_linear(module.down))


def _dense_size(config: DenseConfig | MoEConfig) -> int:
    return config.intermediate_size if isinstance(config, DenseConfig) else config.shared_intermediate_size


def _row(scale: Tensor | None, expert: int) -> Tensor | None:
    return None if scale is None else scale[expert]
