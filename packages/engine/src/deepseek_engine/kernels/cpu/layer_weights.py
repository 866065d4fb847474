"""A decoder's weights as the CPU kernels take them: packed matrices, and norms in bfloat16.

H hidden_size, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deepseek_engine.kernels.cpu.library import IndexerShape, LatentShape, Norm, Routing
from deepseek_engine.kernels.cpu.packed_matrix import PackedMatrix


@dataclass(frozen=True, slots=True)
class NormWeights:
    """A norm's weight, bfloat16; with a bias it is by mean and variance, without by the root of the mean square."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def structure(self) -> Norm:
        """What the kernels read; valid as long as this object is."""
        return Norm(self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr(), self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWeights:
    """A gated feed-forward; `gate_up` is interleaved."""

    gate_up: PackedMatrix
    down: PackedMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """A mixture of experts; every `gate_up` is interleaved.

    Attributes:
        router: of E outputs, bfloat16 or float32.
        choice_bias: float32 [E], of sigmoid routing.
        gate_up: of each expert.
        down: of each expert.
        shared: the network that every token goes through, if there is one.
        bias: bfloat16 [H], of the experts' sum.
    """

    router: PackedMatrix
    choice_bias: Tensor | None
    gate_up: Sequence[PackedMatrix]
    down: Sequence[PackedMatrix]
    shared: DenseWeights | None
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryWeights:
    """Grouped-query attention; the norms are over each head."""

    qkv: PackedMatrix
    output: PackedMatrix
    q_norm: NormWeights | None
    k_norm: NormWeights | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerWeights:
    """Sparse attention's indexer; `head_weights` is float32."""

    query: PackedMatrix
    key: PackedMatrix
    key_norm: NormWeights
    head_weights: PackedMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentWeights:
    """Latent attention.

    Attributes:
        input: to queries or what they come from, then to the latent.
        query: out of compressed queries, which `query_norm` normalises; None where they are not compressed.
        fold_keys: of each head, from a query without its rotated part to the latents' space.
        fold_values: of each head, out of that space.
        indexer: what chooses keys, where attention is sparse.
    """

    input: PackedMatrix
    query_norm: NormWeights | None
    query: PackedMatrix | None
    latent_norm: NormWeights
    fold_keys: Sequence[PackedMatrix]
    fold_values: Sequence[PackedMatrix]
    output: PackedMatrix
    indexer: IndexerWeights | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingWeights:
    """A mixture of attention heads: experts have queries and outputs of their own.

    Attributes:
        router: of E outputs.
        kv: keys and values of all experts.
        queries: of each expert.
        outputs: of each expert.
        bias: bfloat16 [H], of the sum of outputs.
    """

    router: PackedMatrix
    kv: PackedMatrix
    queries: Sequence[PackedMatrix]
    outputs: Sequence[PackedMatrix]
    bias: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer."""

    attention_norm: NormWeights
    attention: GroupedQueryWeights | LatentWeights | AskingWeights
    feed_forward_norm: NormWeights
    feed_forward: DenseWeights | ExpertWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryShape:
    """Sizes of grouped-query attention.

    Attributes:
        num_heads: query heads; of all of a token's experts in a mixture of attention heads.
        is_asking: whether it is such a mixture.
        scale: of the scores.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    is_asking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes that hold for every layer.

    Attributes:
        dense_size: width of the widest feed-forward that is no expert, those which experts share among them.
        expert_size: width of an expert.
        routing: of every mixture, that of attention heads too; None where there is none.
    """

    hidden_size: int
    attention: GroupedQueryShape | LatentShape
    indexer: IndexerShape | None
    dense_size: int
    expert_size: int
    routing: Routing | None
