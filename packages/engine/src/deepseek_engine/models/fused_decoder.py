"""The common kind of decoder on a CPU with the kernels for it: a loaded Transformer, packed, and run a step at a time.

T tokens of the step, R rows asked for, H hidden_size, V vocab_size.
"""

from typing import cast

import torch
from torch import Tensor

from deepseek_engine.kernels.cpu.adapters import StepAdapters
from deepseek_engine.kernels.cpu.attention import GROUP_TOKENS, PagedBatch
from deepseek_engine.kernels.cpu.decoder import CPUDecoder, DecoderShape, DenseWeights, ExpertWeights, LayerWeights
from deepseek_engine.kernels.cpu.library import STORE_FLOAT, load
from deepseek_engine.kernels.cpu.packed_matrix import GATE_GROUP, PackedMatrix
from deepseek_engine.kv_cache.pool import KVCache
from deepseek_engine.layers.attention import GroupedQueryAttention
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import (
    DenseConfig,
    FeedForwardConfig,
    GroupedQueryConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
)
from deepseek_engine.models.transformer import DecoderLayer, Transformer


class FusedDecoder:
    """Grouped-query attention and a gated feed-forward or softmax-routed experts, every layer of the same shape.

    Every row's result depends on its own sequence only: batches, chunks and threads do not change a bit of it.
    """

    def __init__(self, decoder: CPUDecoder, head: PackedMatrix, model_config: ModelConfig) -> None:
        self.config = model_config
        self._decoder = decoder
        self._head = head

    def hidden(
        self, token_ids_T: Tensor, rows_R: Tensor, batch: PagedBatch, adapters: StepAdapters | None = None
    ) -> Tensor:
        """Run one step; bfloat16 [R, H] after the last norm. Arguments as of `CPUDecoder.step`."""
        return self._decoder.step(token_ids_T, rows_R, batch, adapters)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, V]."""
        return self._head.multiply(hidden_RH, STORE_FLOAT)


def fuse(model: Transformer, cache: KVCache, max_model_len: int) -> FusedDecoder | None:
    """Pack a loaded model for the CPU kernels, or return None where they cannot run it.

    Weights are packed layer by layer and the model's own are freed as it goes, so `model` is of no use afterwards.
    """
    config, library = model.config, load()
    if library is None or not can_fuse(model, cache):
        return None
    shape = _shape(config)
    embedding = _packed(model.embedding)
    head = embedding if config.tie_word_embeddings and model.head.bias is None else _packed_linear(model.head)
    layers: list[LayerWeights] = []
    for module in model.layers:
        layers.append(_layer(cast("DecoderLayer", module)))
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.new_empty(0)
    for parameter in (model.embedding, model.head.weight):
        parameter.data = parameter.data.new_empty(0)
    table = rotary_table(config.rope, max_model_len, torch.float32, cache.layer(0)[0].device)
    decoder = CPUDecoder(
        library,
        shape,
        layers=layers,
        embedding=embedding,
        final_norm=model.norm.weight.data,
        cos_sin=_halves(table),
        cache=[(cache.layer(index)[0], cache.layer(index)[1]) for index in range(len(layers))],
    )
    return FusedDecoder(decoder, head, config)


def can_fuse(model: Transformer, cache: KVCache) -> bool:
    """Whether every part of the model is one that the kernels know."""
    config, layer = model.config, model.config.layers[0]
    attention = layer.attention
    return (
        model.embedding.dtype is torch.bfloat16
        and model.embedding.device.type == "cpu"
        and config.norm == "rms"
        and config.hidden_size % 4 == 0
        and all(other == layer for other in config.layers)
        and isinstance(attention, GroupedQueryConfig)
        and attention.head_dim % GROUP_TOKENS == 0
        and config.rope.dim == attention.head_dim
        and cache.block_size % GROUP_TOKENS == 0
        and _can_fuse_feed_forward(layer.feed_forward)
    )


def _can_fuse_feed_forward(config: FeedForwardConfig) -> bool:
    if config.intermediate_size % GATE_GROUP:
        return False
    if isinstance(config, DenseConfig):
        return True
    plain = RouterConfig(
        kind="softmax",
        num_experts=config.router.num_experts,
        num_experts_per_tok=config.router.num_experts_per_tok,
        norm_topk_prob=True,
    )
    return config.router == plain and not config.shared_intermediate_size and not config.output_bias


def _shape(config: ModelConfig) -> DecoderShape:
    attention = cast("GroupedQueryConfig", config.layers[0].attention)
    feed_forward = config.layers[0].feed_forward
    router = feed_forward.router if isinstance(feed_forward, MoEConfig) else None
    return DecoderShape(
        hidden_size=config.hidden_size,
        intermediate_size=feed_forward.intermediate_size,
        num_heads=attention.num_attention_heads,
        num_kv_heads=attention.num_key_value_heads,
        head_dim=attention.head_dim,
        num_experts=0 if router is None else router.num_experts,
        experts_per_token=0 if router is None else router.num_experts_per_tok,
        eps=config.norm_eps,
        final_eps=config.final_norm_eps,
        qk_norm_eps=attention.qk_norm_eps or 0.0,
        attention_scale=attention.head_dim**-0.5,
    )


def _layer(layer: DecoderLayer) -> LayerWeights:
    attention = cast("GroupedQueryAttention", layer.attention)
    return LayerWeights(
        attention_norm=layer.attention_norm.weight.data,
        qkv=_packed_linear(attention.qkv),
        output=_packed_linear(attention.output),
        q_norm=None if attention.q_norm is None else attention.q_norm.weight.data,
        k_norm=None if attention.k_norm is None else attention.k_norm.weight.data,
        feed_forward_norm=layer.feed_forward_norm.weight.data,
        feed_forward=_feed_forward(layer.feed_forward),
    )


def _feed_forward(module: GatedFeedForward | MixtureOfExperts) -> DenseWeights | ExpertWeights:
    if isinstance(module, GatedFeedForward):
        return DenseWeights(gate_up=_packed_linear(module.gate_up, interleave=True), down=_packed_linear(module.down))
    experts = module.experts
    ids = range(experts.gate_up.shape[0])
    return ExpertWeights(
        router=_packed(module.router.weight),
        gate_up=[_packed(experts.gate_up[i], None, _row(experts.gate_up_scale, i), interleave=True) for i in ids],
        down=[_packed(experts.down[i], None, _row(experts.down_scale, i)) for i in ids],
    )


def _row(scale: Tensor | None, expert: int) -> Tensor | None:
    return None if scale is None else scale[expert]


def _packed_linear(linear: Linear, *, interleave: bool = False) -> PackedMatrix:
    return _packed(linear.weight, linear.bias, linear.weight_scale, interleave=interleave)


def _packed(
    weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, *, interleave: bool = False
) -> PackedMatrix:
    packed = PackedMatrix.pack(weight, bias, scale, interleave=interleave)
    assert packed is not None, "can_fuse has looked at the sizes"
    return packed


def _halves(table: Tensor) -> Tensor:
    """The kernels' table [positions, 2, D / 2], from that of `rotary_table` with repeated halves and signed sines."""
    half = table.shape[-1] // 2
    return torch.stack((table[:, 0, :half], table[:, 1, half:]), dim=1).contiguous()
