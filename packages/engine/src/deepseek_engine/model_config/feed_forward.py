"""The shapes of feed-forward layers: one gated network, or a mixture of experts and how tokens are routed to them."""

from dataclasses import dataclass
from typing import Literal

from deepseek_engine.errors import ModelLoadError


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """One gated network of the given width."""

    intermediate_size: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """How each token's experts are chosen and weighted; `layers/routers.py` says what each kind computes.

    Attributes:
        n_group: experts are split into so many equal groups, of which a token may use `topk_group`; 1 is no grouping.
        norm_topk_prob: whether the chosen weights are scaled to sum to 1.
        routed_scaling_factor: multiplies the weights, at last.
        jitter: sparsemixer's threshold, `router_jitter_noise`.
        in_float32: whether logits are computed in float32 whatever the model's type.
    """

    kind: Literal["softmax", "sigmoid", "sparsemixer"]
    num_experts: int
    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    jitter: float = 0.0
    in_float32: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ModelLoadError(
                f"num_experts_per_tok={self.num_experts_per_tok} is outside 1..{self.num_experts} (experts)"
            )
        if self.num_experts % self.n_group:
            raise ModelLoadError(f"{self.num_experts} experts do not split into n_group={self.n_group} equal groups")
        if not 1 <= self.topk_group <= self.n_group:
            raise ModelLoadError(f"topk_group={self.topk_group} is outside 1..{self.n_group} (n_group)")
        if self.kind == "sparsemixer" and self.num_experts_per_tok != 2:
            raise ModelLoadError(f"num_experts_per_tok={self.num_experts_per_tok}: sparsemixer chooses 2 experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """Routed experts of width `intermediate_size`, and one network that every token goes through, if any.

    Attributes:
        shared_intermediate_size: width of all shared experts together; 0 is none.
        output_bias: whether one bias is added to the experts' sum (JetMoE).
    """

    router: RouterConfig
    intermediate_size: int
    shared_intermediate_size: int = 0
    shared_bias: bool = False
    output_bias: bool = False


FeedForwardConfig = DenseConfig | MoEConfig
