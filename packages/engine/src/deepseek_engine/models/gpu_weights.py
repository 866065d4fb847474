"""A loaded model's weights as the GPU decoder takes them: fused, and the shared experts beside the routed ones.

H hidden_size, I width of an expert, E routed experts, S shared ones of that width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from deepseek_engine.layers.attention import GroupedQueryAttention
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.latent_attention import LatentAttention
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.layers.norm import LayerNorm, RMSNorm
from deepseek_engine.model_config import GroupedQueryConfig, LatentConfig, ModelConfig, MoEConfig, RouterConfig
from deepseek_engine.models.decoder_layer import DecoderLayer
from deepseek_engine.models.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight of a linear layer, [out, in] or one for each expert; float32 scales of its rows if it is int8.

    Attributes:
        largest: float32, each row's largest absolute value, where bitsandbytes multiplies; None where our kernels do.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None = None
    largest: Tensor | None = None

    @classmethod
    def of(cls, linear: Linear) -> "Matrix":
        """A layer's own tensors."""
        return cls(linear.weight.data, _data(linear.weight_scale), _data(linear.bias))

    def rows_from(self, first: int) -> "Matrix":
        """Its outputs from the `first` one on."""
        parts = (None if each is None else each[first:] for each in (self.scale, self.bias, self.largest))
        return Matrix(self.weight[first:], *parts)

    def for_bitsandbytes(self) -> "Matrix":
        """With what bitsandbytes takes beside the weight; a float one stays with our kernels."""
        if self.scale is None:
            return self
        bias = None if self.bias is None else self.bias.to(torch.float16)
        return replace(self, bias=bias, largest=127 * self.scale)


@dataclass(frozen=True, slots=True)
class GroupedQueryWeights:
    """Grouped-query attention; the gains are of the norms of queries and keys, where there are any."""

    config: GroupedQueryConfig
    qkv: Matrix
    output: Matrix
    q_gain: Tensor | None
    k_gain: Tensor | None


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """Latent attention: `input` is the query, or its compression, above the latent.

    `key_b` is [heads, nope, C], `value_b` [heads, v, C]: parts of kv_b.
    """

    config: LatentConfig
    input: Matrix
    q_gain: Tensor | None
    q_b: Matrix | None
    latent_gain: Tensor
    kv_b: Tensor
    key_b: Tensor
    value_b: Tensor
    output: Matrix


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """A gated network: `gate_up` [2 I, H], `down` [H, I]."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Routed experts, and behind them the shared ones, which every token goes through: [E + S, ...]."""

    routing: RouterConfig
    num_shared: int
    router: Tensor
    choice_bias: Tensor | None
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class GpuLayer:
    """One layer, with the gains of its two norms."""

    attention_gain: Tensor
    attention: GroupedQueryWeights | LatentWeights
    feed_forward_gain: Tensor
    feed_forward: DenseWeights | ExpertWeights

    @property
    def dense_matrices(self) -> tuple[Matrix, ...]:
        """Those of linear layers that every token goes through."""
        attention, network = self.attention, self.feed_forward
        of_network = (network.gate_up, network.down) if isinstance(network, DenseWeights) else ()
        if isinstance(attention, GroupedQueryWeights):
            return (attention.qkv, attention.output, *of_network)
        between = () if attention.q_b is None else (attention.q_b,)
        return (attention.input, *between, attention.output, *of_network)

    def for_bitsandbytes(self) -> "GpuLayer":
        """With its dense INT8 matrices as bitsandbytes takes them."""
        attention, network = self.attention, self.feed_forward
        output = attention.output.for_bitsandbytes()
        if isinstance(attention, GroupedQueryWeights):
            attention = replace(attention, qkv=attention.qkv.for_bitsandbytes(), output=output)
        else:
            q_b = None if attention.q_b is None else attention.q_b.for_bitsandbytes()
            attention = replace(attention, input=attention.input.for_bitsandbytes(), q_b=q_b, output=output)
        if isinstance(network, DenseWeights):
            network = DenseWeights(network.gate_up.for_bitsandbytes(), network.down.for_bitsandbytes())
        return replace(self, attention=attention, feed_forward=network)


def obstacle(config: ModelConfig) -> str | None:
    """What keeps a model from the GPU decoder, as the end of a sentence; None if nothing does."""
    if config.norm != "rms":
        return "its norms subtract the mean"
    for layer in config.computed_layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        if isinstance(attention, GroupedQueryConfig):
            if config.rope.dim != attention.head_dim:
                return f"only {config.rope.dim} of {attention.head_dim} features of a head rotate"
            if attention.head_dim & (attention.head_dim - 1):
                return f"head_dim={attention.head_dim} is no power of 2"
        elif not isinstance(attention, LatentConfig):
            return "it is a mixture of attention heads"
        elif attention.indexer is not None:
            return "an indexer chooses its keys"
        if isinstance(feed_forward, MoEConfig) and (reason := _of_experts(feed_forward)):
            return reason
    return None


def _of_experts(config: MoEConfig) -> str | None:
    if config.router.kind == "sparsemixer":
        return "its router is a sparse mixer"
    if config.output_bias or config.shared_bias:
        return "its experts have a bias"
    if config.shared_intermediate_size % config.intermediate_size:
        return (
            f"its shared experts are {config.shared_intermediate_size} wide, no multiple of the routed ones' "
            f"{config.intermediate_size}"
        )
    return None


def gather_layers(model: Transformer) -> Iterator[GpuLayer]:
    """The layers, one after another; `model` gives up those of its tensors that had to be copied."""
    for module in model.layers:
        yield gather_layer(cast("DecoderLayer", module))


def gather_layer(layer: DecoderLayer) -> GpuLayer:
    """One layer, which gives up those of its tensors that had to be copied."""
    return GpuLayer(
        attention_gain=gain_of(layer.attention_norm),
        attention=_attention(layer.attention),
        feed_forward_gain=gain_of(layer.feed_forward_norm),
        feed_forward=_feed_forward(layer.feed_forward),
    )


def gain_of(norm: RMSNorm | LayerNorm) -> Tensor:
    """What the normalised features are multiplied by."""
    return norm.weight.data


def _attention(attention: object) -> GroupedQueryWeights | LatentWeights:
    if isinstance(attention, LatentAttention):
        key_b, value_b = attention.folded()
        return LatentWeights(
            config=attention.config,
            input=Matrix.of(attention.input),
            q_gain=None if attention.q_norm is None else attention.q_norm.weight.data,
            q_b=None if attention.q_b is None else Matrix.of(attention.q_b),
            latent_gain=attention.kv_norm.weight.data,
            kv_b=attention.kv_b.data,
            key_b=key_b.detach(),
            value_b=value_b.detach(),
            output=Matrix.of(attention.output),
        )
    assert isinstance(attention, GroupedQueryAttention), "see obstacle"
    config = GroupedQueryConfig(
        num_attention_heads=attention.num_heads,
        num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        qk_norm_eps=None if attention.q_norm is None else attention.q_norm.eps,
    )
    return GroupedQueryWeights(
        config=config,
        qkv=Matrix.of(attention.qkv),
        output=Matrix.of(attention.output),
        q_gain=None if attention.q_norm is None else attention.q_norm.weight.data,
        k_gain=None if attention.k_norm is None else attention.k_norm.weight.data,
    )


def _feed_forward(module: GatedFeedForward | MixtureOfExperts) -> DenseWeights | ExpertWeights:
    if isinstance(module, GatedFeedForward):
        return DenseWeights(Matrix.of(module.gate_up), Matrix.of(module.down))
    experts, router = module.experts, module.router
    gate_up = Matrix(experts.gate_up.data, _data(experts.gate_up_scale))
    down = Matrix(experts.down.data, _data(experts.down_scale))
    num_shared = 0
    if module.shared is not None:
        width = down.weight.shape[2]
        num_shared = module.shared.down.weight.shape[1] // width
        gate_up, down = _beside(gate_up, down, module.shared, num_shared)
        for parameter in (*experts.parameters(), *module.shared.parameters()):
            parameter.data = parameter.data.new_empty(0)
    return ExpertWeights(
        routing=router.config,
        num_shared=num_shared,
        router=router.weight.data,
        choice_bias=_data(router.choice_bias),
        gate_up=gate_up,
        down=down,
    )


def _beside(gate_up: Matrix, down: Matrix, shared: GatedFeedForward, num_shared: int) -> tuple[Matrix, Matrix]:
    """The routed experts and the shared ones, which are one network, cut into experts of the routed ones' width."""
    hidden_size, width = down.weight.shape[1:]
    # [2, S, I, ...]: gate rows above up rows, of each shared expert in turn.
    rows = shared.gate_up.weight.data.view(2, num_shared, width, hidden_size).transpose(0, 1)
    columns = shared.down.weight.data.view(hidden_size, num_shared, width).transpose(0, 1)
    gate_up_scale = down_scale = None
    if gate_up.scale is not None and down.scale is not None:
        of_rows, of_output = _data(shared.gate_up.weight_scale), _data(shared.down.weight_scale)
        assert of_rows is not None, "experts and shared experts are stored alike"
        assert of_output is not None, "experts and shared experts are stored alike"
        shared_scale = of_rows.view(2, num_shared, width).transpose(0, 1).reshape(num_shared, -1)
        gate_up_scale = torch.cat((gate_up.scale, shared_scale))
        down_scale = torch.cat((down.scale, of_output.expand(num_shared, -1)))
    return (
        Matrix(torch.cat((gate_up.weight, rows.reshape(num_shared, -1, hidden_size))), gate_up_scale),
        Matrix(torch.cat((down.weight, columns)), down_scale),
    )


def _data(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.data
