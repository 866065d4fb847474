"""The choice of experts from logits that a kernel holds in registers: softmax or sigmoid, groups, top-k, weights.

B tokens of a program, G groups of experts, P experts a group. Experts lie in columns padded to powers of two, group by
group: column g * P_BLOCK + p holds expert g * P + p, so that a tile of columns reshapes to groups whatever E is.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import triton
import triton.language as tl

from deepseek_engine.kernels.triton.launch import power_of_two
from deepseek_engine.model_config import RouterConfig

MAX_COLUMNS = 512
MAX_EXPERTS_PER_TOKEN = 8

_HIDDEN: tl.constexpr = tl.constexpr(-1.0e30)
# Below every score, above the -inf of what was taken: with too few experts in the chosen groups others follow.


@dataclass(frozen=True, slots=True)
class ChoiceConstants:
    """What a rule is to a kernel; `arguments` are its constexprs."""

    rule: RouterConfig
    num_shared: int

    @property
    def group_columns(self) -> int:
        """Columns of a group, P_BLOCK."""
        return power_of_two(self.rule.num_experts // self.rule.n_group)

    @property
    def num_columns(self) -> int:
        """Columns of all groups."""
        return power_of_two(self.rule.n_group) * self.group_columns

    @property
    def num_outputs(self) -> int:
        """Experts of a token, the shared ones included."""
        return self.rule.num_experts_per_tok + self.num_shared

    def arguments(self) -> dict[str, object]:
        """The constexprs of `choose_experts` and `expert_of_column`."""
        return {
            "NUM_EXPERTS": self.rule.num_experts,
            "NUM_GROUPS": self.rule.n_group,
            "GROUP_BLOCK": power_of_two(self.rule.n_group),
            "EXPERT_BLOCK": self.group_columns,
            "TOP_GROUPS": self.rule.topk_group,
            "TOP_K": self.rule.num_experts_per_tok,
            "NUM_SHARED": self.num_shared,
            "OUT_BLOCK": power_of_two(self.num_outputs),
            "IS_SIGMOID": self.rule.kind == "sigmoid",
            "IS_NORMALISED": self.rule.norm_topk_prob,
            "SCALE": float(self.rule.routed_scaling_factor),
        }


def choice_constants(rule: RouterConfig, num_shared: int) -> ChoiceConstants:
    """Check a rule against what the kernels hold.

    Raises:
        NotImplementedError: the rule is a sparsemixer.
        ValueError: more than 8 experts a token, or more experts than a program holds.
    """
    if rule.kind == "sparsemixer":
        raise NotImplementedError("sparsemixer has no kernel: choose its experts with layers.routers.sparse_mixer")
    constants = ChoiceConstants(rule, num_shared)
    if rule.num_experts_per_tok > MAX_EXPERTS_PER_TOKEN:
        raise ValueError(f"num_experts_per_tok={rule.num_experts_per_tok} exceeds the kernel's {MAX_EXPERTS_PER_TOKEN}")
    if constants.num_columns > MAX_COLUMNS:
        raise ValueError(
            f"{rule.num_experts} experts in {rule.n_group} groups take {constants.num_columns} columns, more than the "
            f"kernel's {MAX_COLUMNS}"
        )
    return constants


@triton.jit
def expert_of_column(
    column, NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, EXPERT_BLOCK: tl.constexpr
):  # fmt: skip
    """The expert of each column, -1 where there is none."""
    per_group: tl.constexpr = NUM_EXPERTS // NUM_GROUPS
    group, place = column // EXPERT_BLOCK, column % EXPERT_BLOCK
    return tl.where((place < per_group) & (group < NUM_GROUPS), group * per_group + place, -1)


@triton.jit
def choose_experts(
    logits, choice_bias,
    NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUP_BLOCK: tl.constexpr, EXPERT_BLOCK: tl.constexpr,
    TOP_GROUPS: tl.constexpr, TOP_K: tl.constexpr, OUT_BLOCK: tl.constexpr,
    IS_SIGMOID: tl.constexpr, IS_NORMALISED: tl.constexpr, SCALE: tl.constexpr, NUM_TOKENS: tl.constexpr,
):  # fmt: skip
    """Ids, int32, and weights, float32, both [B, OUT_BLOCK]: the best expert first, the shared ones last.

    From logits, float32 [B, columns], and for sigmoid rules choice_bias, float32 [columns]; the lower expert wins ties.
    NUM_TOKENS is B, the other constants are those of `ChoiceConstants`.
    """
    COLUMNS: tl.constexpr = GROUP_BLOCK * EXPERT_BLOCK
    column = tl.arange(0, COLUMNS)
    expert = expert_of_column(column, NUM_EXPERTS, NUM_GROUPS, EXPERT_BLOCK)
    is_expert = (expert >= 0)[None, :]
    if IS_SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
        ranked = tl.where(is_expert, scores + choice_bias[None, :], float("-inf"))
    else:
        logits = tl.where(is_expert, logits, float("-inf"))
        scores = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        scores = scores / tl.sum(scores, axis=1)[:, None]
        ranked = tl.where(is_expert, scores, float("-inf"))
    if NUM_GROUPS > 1:
        grouped = tl.reshape(ranked, (NUM_TOKENS, GROUP_BLOCK, EXPERT_BLOCK))
        best = tl.max(grouped, axis=2)
        if IS_SIGMOID and NUM_EXPERTS // NUM_GROUPS > 1:
            place = tl.arange(0, EXPERT_BLOCK)[None, None, :]
            first = tl.argmax(grouped, axis=2, tie_break_left=True)
            best += tl.max(tl.where(place == first[:, :, None], float("-inf"), grouped), axis=2)
        group = tl.arange(0, GROUP_BLOCK)[None, :]
        is_kept = tl.zeros((NUM_TOKENS, GROUP_BLOCK), tl.int1)
        for _ in range(TOP_GROUPS):
            chosen = group == tl.argmax(best, axis=1, tie_break_left=True)[:, None]
            is_kept = is_kept | chosen
            best = tl.where(chosen, float("-inf"), best)
        grouped = tl.where(is_kept[:, :, None] | (grouped == float("-inf")), grouped, _HIDDEN)
        ranked = tl.reshape(grouped, (NUM_TOKENS, COLUMNS))
        if not IS_SIGMOID:
            scores = tl.where(ranked > _HIDDEN, scores, 0.0)
    place = tl.arange(0, OUT_BLOCK)[None, :]
    ids = tl.zeros((NUM_TOKENS, OUT_BLOCK), tl.int32)
    weights = tl.zeros((NUM_TOKENS, OUT_BLOCK), tl.float32)
    for index in range(TOP_K):
        is_chosen = column[None, :] == tl.argmax(ranked, axis=1, tie_break_left=True)[:, None]
        chosen_id = tl.maximum(tl.sum(tl.where(is_chosen, expert[None, :], 0), axis=1), 0)  # a row of NaNs has no best
        weight = tl.sum(tl.where(is_chosen, scores, 0.0), axis=1)
        ids = tl.where(place == index, chosen_id[:, None], ids)
        weights = tl.where(place == index, weight[:, None], weights)
        ranked = tl.where(is_chosen, float("-inf"), ranked)
    if IS_NORMALISED:
        weights = weights / (tl.sum(weights, axis=1)[:, None] + 1.0e-20)
    weights = weights * SCALE
    is_shared = place >= TOP_K
    ids = tl.where(is_shared, NUM_EXPERTS + place - TOP_K, ids)
    return ids, tl.where(is_shared, 1.0, weights)
