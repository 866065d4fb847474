"""One token's choice of experts from logits that programs have added up, inside the output projection's kernel.

The logits are sums in fixed point, so that every order of addition gives the same.

H hidden_size, J experts a token with the shared ones.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

import triton
import triton.language as tl

LOGIT_STEPS = tl.constexpr(2.0**30)
SQUARE_STEPS = tl.constexpr(2.0**20)
"""Of 1, in fixed point: logits up to 8e9 and sums of squares up to 8e12 fit, with 9 digits behind the point of the one
and 6 of the other."""


@triton.jit
def _without_lesser_groups(
    chosen_by, KIND: tl.constexpr, NUM_GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, BLOCK_E: tl.constexpr
):
    """Leave the best groups' experts in the choice: by their best one, or the sum of their two best."""
    GROUP: tl.constexpr = BLOCK_E // NUM_GROUPS
    grouped = tl.reshape(chosen_by, (NUM_GROUPS, GROUP))
    of_groups = tl.max(grouped, axis=1)
    if KIND == "sigmoid":
        best = tl.argmax(grouped, axis=1)
        rest = tl.where(tl.arange(0, GROUP)[None, :] == best[:, None], float("-inf"), grouped)
        of_groups += tl.max(rest, axis=1)
    groups = tl.arange(0, NUM_GROUPS)
    is_kept = groups < 0
    for _ in tl.static_range(KEPT_GROUPS):
        best = tl.argmax(of_groups, axis=0)
        is_kept = is_kept | (groups == best)
        of_groups = tl.where(groups == best, float("-inf"), of_groups)
    # A group that is out still has experts of score 0 in the softmax kind: what is chosen is above 0 anyway.
    return tl.reshape(tl.where(is_kept[:, None], grouped, float("-inf")), (BLOCK_E,))


@triton.jit
def scores_of(
    sums, choice_bias, H, eps, KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """What experts are weighted by, what they are chosen by, and what the norm multiplies the residual by."""
    experts = tl.arange(0, BLOCK_E)
    is_expert = experts < NUM_EXPERTS
    # Others added to them: past the first-level cache, which may hold what lay there before.
    square = tl.load(sums + BLOCK_E, cache_modifier=".cg").to(tl.float32)
    sum_of_experts = tl.load(sums + experts, mask=is_expert, other=0, cache_modifier=".cg").to(tl.float32)
    inverse = tl.rsqrt(square * (1.0 / SQUARE_STEPS) / H + eps)
    logits = sum_of_experts * (1.0 / LOGIT_STEPS) * inverse
    if KIND == "sigmoid":
        scores = tl.where(is_expert, tl.sigmoid(logits), 0.0)
        chosen_by = scores + tl.load(choice_bias + experts, mask=is_expert, other=0.0)
    else:
        logits = tl.where(is_expert, logits, float("-inf"))
        powers = tl.exp(logits - tl.max(logits))
        scores = powers / tl.sum(powers)
        chosen_by = scores
    chosen_by = tl.where(is_expert, chosen_by, float("-inf"))
    if NUM_GROUPS > 1:
        chosen_by = _without_lesser_groups(chosen_by, KIND, NUM_GROUPS, KEPT_GROUPS, BLOCK_E)
    return scores, chosen_by, inverse


@triton.jit
def choose(
    scores, chosen_by, factor, KIND: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    NORMALISES: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The chosen experts and their weights, [BLOCK_J]; behind them the shared ones, with weight 1.

    A number and its expert are one key, so that each choice is one maximum: floats order as whole numbers once those of
    negative ones are turned round, and of equal ones the lower id has the greater rest.
    """
    experts, places = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_J)
    bits = chosen_by.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (BLOCK_E - 1 - experts).to(tl.int64)
    ids = NUM_EXPERTS + places - TOP_K
    weights = tl.zeros((BLOCK_J,), dtype=tl.float32)
    total = 1e-20
    for place in tl.static_range(TOP_K):
        key = tl.max(keys)
        expert = tl.minimum(BLOCK_E - 1 - (key & 0xFFFFFFFF).to(tl.int32), NUM_EXPERTS - 1)  # of NaNs none is best
        keys = tl.where(experts == expert, -0x7FFFFFFFFFFFFFFF, keys)
        if KIND == "softmax":
            score = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        else:
            score = tl.sum(tl.where(experts == expert, scores, 0.0))
        total += score
        ids = tl.where(places == place, expert, ids)
        weights = tl.where(places == place, score, weights)
    if NORMALISES:
        factor = factor / total
    return ids, tl.where(places < TOP_K, weights * factor, 1.0)
