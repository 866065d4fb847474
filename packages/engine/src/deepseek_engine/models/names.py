"""How checkpoints call their tensors, part by part, and where each tensor goes.

Families share most names; what differs is how experts are spelled. A fused projection's parts go to rows of one
parameter, an expert's tensors to its slice of the parameter that holds all experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn

from deepseek_engine.layers.attention import GroupedQueryAttention
from deepseek_engine.layers.feed_forward import GatedFeedForward
from deepseek_engine.layers.indexer import Indexer
from deepseek_engine.layers.latent_attention import LatentAttention
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.mixture_of_attention import MixtureOfAttention
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.layers.norm import LayerNorm, RMSNorm
from deepseek_engine.models.transformer import Attention, DecoderLayer, FeedForward, Transformer


@dataclass(frozen=True, slots=True)
class Destination:
    """All of a module's parameter, or the part of it that `index` selects."""

    module: nn.Module
    parameter: str
    index: tuple[int | slice, ...] = ()

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
    found = _norm(model.norm, "model.norm") | {"model.embed_tokens.weight": Destination(model, "embedding")}
    if not model.config.tie_word_embeddings:
        found["lm_head.weight"] = Destination(model.head, "weight")
    if model.head.bias is not None:
        found["lm_head.bias"] = Destination(model.head, "bias")
    for index, module in enumerate(model.layers):
        layer, prefix = cast("DecoderLayer", module), f"model.layers.{index}."
        found |= _norm(layer.attention_norm, f"{prefix}input_layernorm")
        found |= _norm(layer.feed_forward_norm, f"{prefix}post_attention_layernorm")
        found |= _attention(layer.attention, prefix)
        found |= _feed_forward(layer.feed_forward, prefix, names, model.config.architecture)
    return found


def may_be_ignored(model: Transformer, name: str) -> bool:
    """Tensors that a checkpoint may have and the model does not use.

    Buffers that old files carry, the head's own copy where it is tied to the embedding, and the layers behind the last
    one that predict a second token (MTP): `model.layers.61.*` of DeepSeek-V3.
    """
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name == "lm_head.weight":
        return model.config.tie_word_embeddings
    first = len(model.config.layers)
    mtp_layers = range(first, first + model.config.num_mtp_layers)
    return any(name.startswith(f"model.layers.{index}.") for index in mtp_layers)


def _attention(attention: Attention, prefix: str) -> Destinations:
    match attention:
        case GroupedQueryAttention():
            return _grouped_query_attention(attention, f"{prefix}self_attn.")
        case LatentAttention():
            return _latent_attention(attention, f"{prefix}self_attn.")
        case MixtureOfAttention():
            return _mixture_of_attention(attention, f"{prefix}self_attention.")


def _grouped_query_attention(attention: GroupedQueryAttention, prefix: str) -> Destinations:
    found = _linear(attention.qkv, prefix, "q_proj", "k_proj", "v_proj") | _linear(attention.output, prefix, "o_proj")
    if attention.q_norm is not None and attention.k_norm is not None:
        found |= _norm(attention.q_norm, f"{prefix}q_norm") | _norm(attention.k_norm, f"{prefix}k_norm")
    return found


def _latent_attention(attention: LatentAttention, prefix: str) -> Destinations:
    if attention.q_norm is not None and attention.q_b is not None:
        found = _linear(attention.input, prefix, "q_a_proj", "kv_a_proj_with_mqa")
        found |= _norm(attention.q_norm, f"{prefix}q_a_layernorm") | _linear(attention.q_b, prefix, "q_b_proj")
    else:
        found = _linear(attention.input, prefix, "q_proj", "kv_a_proj_with_mqa")
        # Only a compressed query's projection may have a bias; the fused one stays 0 for this part.
        found.pop(f"{prefix}q_proj.bias", None)
    found |= _norm(attention.kv_norm, f"{prefix}kv_a_layernorm")
    found[f"{prefix}kv_b_proj.weight"] = Destination(attention, "kv_b")
    found |= _linear(attention.output, prefix, "o_proj")
    return found if attention.indexer is None else found | _indexer(attention.indexer, f"{prefix}indexer.")


def _indexer(indexer: Indexer, prefix: str) -> Destinations:
    return (
        _linear(indexer.query, prefix, "wq_b")
        | _linear(indexer.key, prefix, "wk")
        | _norm(indexer.key_norm, f"{prefix}k_norm")
        | {f"{prefix}weights_proj.weight": Destination(indexer, "head_weights")}
    )


def _mixture_of_attention(attention: MixtureOfAttention, prefix: str) -> Destinations:
    return {
        # One tensor holds keys above values, in the order of the fused projection.
        f"{prefix}kv_proj.weight": Destination(attention.kv, "weight"),
        f"{prefix}experts.input_linear.weight": Destination(attention, "queries"),
        f"{prefix}experts.output_linear.weight": Destination(attention, "outputs"),
        f"{prefix}experts.bias": Destination(attention, "bias"),
        f"{prefix}experts.router.layer.weight": Destination(attention.router, "weight"),
    }


def _feed_forward(feed_forward: FeedForward, prefix: str, names: set[str], architecture: str) -> Destinations:
    if isinstance(feed_forward, GatedFeedForward):
        return _gated(feed_forward, f"{prefix}mlp.")
    if architecture == "JetMoeForCausalLM":
        return _jetmoe_experts(feed_forward, f"{prefix}mlp.")
    found = dict(_experts(feed_forward, prefix, names, expert_spelling(architecture)))
    if feed_forward.shared is not None:
        found |= _gated(feed_forward.shared, f"{prefix}mlp.shared_experts.")
    return found


def _experts(
    moe: MixtureOfExperts, prefix: str, names: set[str], spelling: ExpertSpelling
) -> Iterator[tuple[str, Destination]]:
    fused = f"{prefix}mlp.experts.gate_up_proj"
    is_fused = fused in names
    router = f"{prefix}mlp.{spelling.fused_gate}" if is_fused else f"{prefix}{spelling.block}{spelling.gate}"
    yield f"{router}.weight", Destination(moe.router, "weight")
    if moe.router.choice_bias is not None:
        yield f"{router}.e_score_correction_bias", Destination(moe.router, "choice_bias")
    if is_fused:
        yield fused, Destination(moe.experts, "gate_up")
        yield f"{prefix}mlp.experts.down_proj", Destination(moe.experts, "down")
        return
    num_experts, _, inner = moe.experts.down.shape
    gate, up, down = spelling.projections
    for expert in range(num_experts):
        each = f"{prefix}{spelling.block}experts.{expert}."
        yield f"{each}{gate}.weight", Destination(moe.experts, "gate_up", (expert, slice(None, inner)))
        yield f"{each}{up}.weight", Destination(moe.experts, "gate_up", (expert, slice(inner, None)))
        yield f"{each}{down}.weight", Destination(moe.experts, "down", (expert,))


def _jetmoe_experts(moe: MixtureOfExperts, prefix: str) -> Destinations:
    return {
        f"{prefix}router.layer.weight": Destination(moe.router, "weight"),
        f"{prefix}input_linear.weight": Destination(moe.experts, "gate_up"),
        f"{prefix}output_linear.weight": Destination(moe.experts, "down"),
        f"{prefix}bias": Destination(moe, "bias"),
    }


def _gated(feed_forward: GatedFeedForward, prefix: str) -> Destinations:
    return _linear(feed_forward.gate_up, prefix, "gate_proj", "up_proj") | _linear(
        feed_forward.down, prefix, "down_proj"
    )


def _linear(linear: Linear, prefix: str, *projections: str) -> Destinations:
    found: Destinations = {}
    start = 0
    for name, size in zip(projections, linear.out_features, strict=True):
        rows = slice(start, start + size)
        found[f"{prefix}{name}.weight"] = Destination(linear, "weight", (rows,))
        if linear.bias is not None:
            found[f"{prefix}{name}.bias"] = Destination(linear, "bias", (rows,))
        start += size
    return found


def _norm(norm: RMSNorm | LayerNorm, name: str) -> Destinations:
    found = {f"{name}.weight": Destination(norm, "weight")}
    if isinstance(norm, LayerNorm):
        found[f"{name}.bias"] = Destination(norm, "bias")
    return found
