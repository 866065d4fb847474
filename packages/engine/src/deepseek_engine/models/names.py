"""How checkpoints call their tensors, part by part, and where each tensor goes.

Families share most names; what differs is how experts are spelled. A fused projection's parts go to rows of one
parameter, an expert's tensors to its slice of the parameter that holds all experts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn

from deepseek_engine.layers.attention import GroupedQueryAttention
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.indexer import Indexer
from deepseek_engine.layers.latent_attention import LatentAttention
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.mixture_of_attention import MixtureOfAttention
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.layers.norm import LayerNorm, RMSNorm
from deepseek_engine.models.decoder_layer import Attention, DecoderLayer, FeedForward
from deepseek_engine.models.mtp import MtpLayer, mtp_prefix
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.parallel.shares import Cut, Share


@dataclass(frozen=True, slots=True)
class Destination:
    """All of a module's parameter, or the part of it that `index` selects.

    `share` is what of the checkpoint's tensor goes there; None is all of it.
    """

    module: nn.Module
    parameter: str
    index: tuple[int | slice, ...] = ()
    share: Share | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the checkpoint's tensor."""
        shape = self.tensor.shape
        return shape if self.share is None else self.share.whole_shape(shape)

    @property
    def tensor(self) -> Tensor:
        """A view of the parameter, to be written to."""
        return cast("nn.Parameter", getattr(self.module, self.parameter)).data[self.index]

    @property
    def scale(self) -> Tensor:
        """A view of the scales of an INT8 parameter, one for each output channel of `tensor`."""
        return cast("nn.Parameter", getattr(self.module, f"{self.parameter}_scale")).data[self.index]


Destinations = dict[str, Destination]


@dataclass(frozen=True, slots=True)
class ExpertSpelling:
    """Names of a family's experts within a layer: one tensor an expert and projection, or all experts in one.

    Attributes:
        block: of the router and the single experts.
        gate: the router's own name in `block`.
        projections: gate, up and down of a single expert.
        fused_gate: the router's name beside the fused tensors, which transformers 5 keeps under `mlp.`.
    """

    block: str
    gate: str
    projections: tuple[str, str, str]
    fused_gate: str


_MIXTRAL: Final = ExpertSpelling("block_sparse_moe.", "gate", ("w1", "w3", "w2"), "gate")
_PHIMOE: Final = ExpertSpelling("block_sparse_moe.", "gate", ("w1", "w3", "w2"), "router")
_DEEPSEEK: Final = ExpertSpelling("mlp.", "gate", ("gate_proj", "up_proj", "down_proj"), "gate")
_SPELLINGS: Final = {
    "MixtralForCausalLM": _MIXTRAL,
    "PhimoeForCausalLM": _PHIMOE,
    "PhiMoEForCausalLM": _PHIMOE,
}


def expert_spelling(architecture: str) -> ExpertSpelling:
    """How the checkpoints of an architecture name their experts."""
    return _SPELLINGS.get(architecture, _DEEPSEEK)


def checkpoint_destinations(model: Transformer, names: set[str]) -> Destinations:
    """Where each tensor of the model's checkpoint goes, by name.

    Args:
        model: its config says how the family spells names.
        names: of the checkpoint's tensors, which tell which of two spellings of the experts it uses.
    """
    cut = Cut(model.group.rank, model.group.size)
    found = _norm(model.norm, "model.norm") | {"model.embed_tokens.weight": Destination(model, "embedding")}
    words = cut.rows(model.head.out_features[0]) if model.is_head_cut else None
    if not model.config.tie_word_embeddings:
        found["lm_head.weight"] = Destination(model.head, "weight", share=words)
    if model.head.bias is not None:
        found["lm_head.bias"] = Destination(model.head, "bias", share=words)
    architecture = model.config.architecture
    for index, layer in enumerate(model.layers):
        found |= _layer(cast("DecoderLayer", layer), f"model.layers.{index}.", cut, names, architecture)
    if model.mtp is not None:
        prefix = mtp_prefix(model.config)
        found |= _mtp(model.mtp, prefix) | _layer(model.mtp.layer, prefix, cut, names, architecture)
    return found


def may_be_ignored(model: Transformer, name: str) -> bool:
    """Tensors that a checkpoint may have and the model does not use.

    Buffers that old files carry, the head's own copy where it is tied to the embedding, and the layers behind the last
    one that predict a second token (MTP): `model.layers.61.*` of DeepSeek-V3. Of the one that is used, that is its copy
    of the embedding and the head.
    """
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name == "lm_head.weight":
        return model.config.tie_word_embeddings
    if model.mtp is not None and name.startswith(prefix := mtp_prefix(model.config)):
        return name.removeprefix(prefix) in ("embed_tokens.weight", "shared_head.head.weight")
    first = len(model.config.layers)
    mtp_layers = range(first, first + model.config.num_mtp_layers)
    return any(name.startswith(f"model.layers.{index}.") for index in mtp_layers)


def _layer(layer: DecoderLayer, prefix: str, cut: Cut, names: set[str], architecture: str) -> Destinations:
    return (
        _norm(layer.attention_norm, f"{prefix}input_layernorm")
        | _norm(layer.feed_forward_norm, f"{prefix}post_attention_layernorm")
        | _attention(layer.attention, prefix, cut)
        | _feed_forward(layer.feed_forward, prefix, cut, names, architecture)
    )


def _mtp(mtp: MtpLayer, prefix: str) -> Destinations:
    """What the layer has beside a decoder layer."""
    return (
        _norm(mtp.embedding_norm, f"{prefix}enorm")
        | _norm(mtp.hidden_norm, f"{prefix}hnorm")
        | _linear(mtp.merge, prefix, "eh_proj")
        | _norm(mtp.norm, f"{prefix}shared_head.norm")
    )


def _attention(attention: Attention, prefix: str, cut: Cut) -> Destinations:
    match attention:
        case GroupedQueryAttention():
            return _grouped_query_attention(attention, f"{prefix}self_attn.", cut)
        case LatentAttention():
            return _latent_attention(attention, f"{prefix}self_attn.", cut)
        case MixtureOfAttention():
            return _mixture_of_attention(attention, f"{prefix}self_attention.", cut)


def _grouped_query_attention(attention: GroupedQueryAttention, prefix: str, cut: Cut) -> Destinations:
    query_width, kv_width, _ = attention.qkv.out_features
    kv_rows = cut.rows(kv_width, replicas=attention.kv_replicas)
    shares = (cut.rows(query_width), kv_rows, kv_rows)
    found = _linear(attention.qkv, prefix, "q_proj", "k_proj", "v_proj", shares=shares)
    found |= _output(attention.output, prefix, "o_proj", cut)
    if attention.q_norm is not None and attention.k_norm is not None:
        found |= _norm(attention.q_norm, f"{prefix}q_norm") | _norm(attention.k_norm, f"{prefix}k_norm")
    return found


def _latent_attention(attention: LatentAttention, prefix: str, cut: Cut) -> Destinations:
    if attention.q_norm is not None and attention.q_b is not None:
        found = _linear(attention.input, prefix, "q_a_proj", "kv_a_proj_with_mqa")
        found |= _norm(attention.q_norm, f"{prefix}q_a_layernorm")
        found |= _linear(attention.q_b, prefix, "q_b_proj", shares=(cut.rows(*attention.q_b.out_features),))
    else:
        shares = (cut.rows(attention.input.out_features[0]), None)
        found = _linear(attention.input, prefix, "q_proj", "kv_a_proj_with_mqa", shares=shares)
        # Only a compressed query's projection may have a bias; the fused one stays 0 for this part.
        found.pop(f"{prefix}q_proj.bias", None)
    found |= _norm(attention.kv_norm, f"{prefix}kv_a_layernorm")
    of_heads = cut.rows(attention.kv_b.shape[0])
    found[f"{prefix}kv_b_proj.weight"] = Destination(attention, "kv_b", share=of_heads)
    found |= _output(attention.output, prefix, "o_proj", cut)
    return found if attention.indexer is None else found | _indexer(attention.indexer, f"{prefix}indexer.")


def _indexer(indexer: Indexer, prefix: str) -> Destinations:
    return (
        _linear(indexer.query, prefix, "wq_b")
        | _linear(indexer.key, prefix, "wk")
        | _norm(indexer.key_norm, f"{prefix}k_norm")
        | {f"{prefix}weights_proj.weight": Destination(indexer, "head_weights")}
    )


def _mixture_of_attention(attention: MixtureOfAttention, prefix: str, cut: Cut) -> Destinations:
    width, hidden_size = attention.queries.shape[1:]
    return {
        # One tensor holds keys above values, in the order of the fused projection.
        f"{prefix}kv_proj.weight": Destination(attention.kv, "weight", share=cut.rows(width, matrices=2)),
        f"{prefix}experts.input_linear.weight": Destination(attention, "queries", share=cut.rows(width)),
        f"{prefix}experts.output_linear.weight": Destination(attention, "outputs", share=cut.columns(width)),
        f"{prefix}experts.bias": Destination(attention, "bias", share=cut.once(hidden_size)),
        f"{prefix}experts.router.layer.weight": Destination(attention.router, "weight"),
    }


def _feed_forward(feed_forward: FeedForward, prefix: str, cut: Cut, names: set[str], architecture: str) -> Destinations:
    if isinstance(feed_forward, GatedFeedForward):
        return _gated(feed_forward, f"{prefix}mlp.", cut)
    if architecture == "JetMoeForCausalLM":
        return _jetmoe_experts(feed_forward, f"{prefix}mlp.", cut)
    found = dict(_experts(feed_forward, prefix, cut, names, expert_spelling(architecture)))
    if feed_forward.shared is not None:
        found |= _gated(feed_forward.shared, f"{prefix}mlp.shared_experts.", cut)
    return found


def _experts(
    moe: MixtureOfExperts, prefix: str, cut: Cut, names: set[str], spelling: ExpertSpelling
) -> Iterator[tuple[str, Destination]]:
    fused = f"{prefix}mlp.experts.gate_up_proj"
    is_fused = fused in names
    router = f"{prefix}mlp.{spelling.fused_gate}" if is_fused else f"{prefix}{spelling.block}{spelling.gate}"
    yield f"{router}.weight", Destination(moe.router, "weight")
    if moe.router.choice_bias is not None:
        yield f"{router}.e_score_correction_bias", Destination(moe.router, "choice_bias")
    num_experts, _, inner = moe.experts.down.shape
    rows, columns = cut.rows(inner), cut.columns(inner)
    if is_fused:
        yield fused, Destination(moe.experts, "gate_up", share=cut.rows(inner, matrices=2))
        yield f"{prefix}mlp.experts.down_proj", Destination(moe.experts, "down", share=columns)
        return
    gate, up, down = spelling.projections
    for expert in range(num_experts):
        each = f"{prefix}{spelling.block}experts.{expert}."
        yield f"{each}{gate}.weight", Destination(moe.experts, "gate_up", (expert, slice(None, inner)), rows)
        yield f"{each}{up}.weight", Destination(moe.experts, "gate_up", (expert, slice(inner, None)), rows)
        yield f"{each}{down}.weight", Destination(moe.experts, "down", (expert,), columns)


def _jetmoe_experts(moe: MixtureOfExperts, prefix: str, cut: Cut) -> Destinations:
    _, hidden_size, inner = moe.experts.down.shape
    return {
        f"{prefix}router.layer.weight": Destination(moe.router, "weight"),
        f"{prefix}input_linear.weight": Destination(moe.experts, "gate_up", share=cut.rows(inner, matrices=2)),
        f"{prefix}output_linear.weight": Destination(moe.experts, "down", share=cut.columns(inner)),
        f"{prefix}bias": Destination(moe, "bias", share=cut.once(hidden_size)),
    }


def _gated(feed_forward: GatedFeedForward, prefix: str, cut: Cut) -> Destinations:
    shares = tuple(cut.rows(width) for width in feed_forward.gate_up.out_features)
    found = _linear(feed_forward.gate_up, prefix, "gate_proj", "up_proj", shares=shares)
    return found | _output(feed_forward.down, prefix, "down_proj", cut)


def _linear(linear: Linear, prefix: str, *projections: str, shares: Sequence[Share | None] = ()) -> Destinations:
    """Projections one below the other; `shares` are those of their rows."""
    found: Destinations = {}
    start = 0
    for name, size, share in zip(projections, linear.out_features, shares or [None] * len(projections), strict=True):
        rows = slice(start, start + size)
        found[f"{prefix}{name}.weight"] = Destination(linear, "weight", (rows,), share)
        if linear.bias is not None:
            found[f"{prefix}{name}.bias"] = Destination(linear, "bias", (rows,), share)
        start += size
    return found


def _output(linear: Linear, prefix: str, name: str, cut: Cut) -> Destinations:
    """A projection whose inputs are shared among the ranks, so that its outputs are summed up."""
    num_outputs, num_inputs = linear.weight.shape
    rows = (slice(0, num_outputs),)
    found = {f"{prefix}{name}.weight": Destination(linear, "weight", rows, cut.columns(num_inputs))}
    if linear.bias is not None:
        found[f"{prefix}{name}.bias"] = Destination(linear, "bias", rows, cut.once(num_outputs))
    return found


def _norm(norm: RMSNorm | LayerNorm, name: str) -> Destinations:
    found = {f"{name}.weight": Destination(norm, "weight")}
    if isinstance(norm, LayerNorm):
        found[f"{name}.bias"] = Destination(norm, "bias")
    return found
