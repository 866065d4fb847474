"""Attention of prefill chunks over cached latents, expanded to each head's keys and values where that is less work.

T tokens, N heads, C kv_lora_rank, D qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim, K keys of a pass.

The expansion is one matrix product of the latents gathered from the pages. Keys stay in two parts, a head's own D
features and the R rotated ones that all heads share: two products, of widths that need no padding.
A chunk whose keys do not fit the workspace attends pass by pass; the kernel merges its result with that of the passes
before by their log-sum-exp. `latent_prefill_plan` decides what is expanded when.
Source: FlashAttention-2 (arXiv 2307.08691).
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.latent_prefill_plan import AbsorbedRows, ExpandedPass, LatentPrefillPlan
from deepseek_engine.kernels.triton.latent_decode import LOG2_E, latent_decode_attention
from deepseek_engine.kernels.triton.latent_projections import absorb_query, expand_values
from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, wait_for_inputs
from deepseek_engine.model_config import LatentConfig


@triton.jit
def _latent_prefill(
    q_ptr,
    kv_ptr,
    latents_ptr,
    table_ptr,
    out_ptr,
    lse_ptr,
    scale_log2,
    q_row_stride,
    q_head_stride,
    kv_stride,
    latents_stride,
    NUM_HEADS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MERGES: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    let_next_begin(IS_DEPENDENT)
    head = tl.program_id(1)
    span = table_ptr + tl.program_id(2) * 8
    num_rows = tl.load(span + 1)
    tile = tl.cdiv(num_rows, BLOCK_M) - 1 - tl.program_id(0)  # the last tiles, which see most keys, go first
    if tile >= 0:
        first_position = tl.load(span + 2) + tile * BLOCK_M
        prefix_len = tl.load(span + 3)
        key_begin = tl.load(span + 4)
        key_end = tl.load(span + 5)
        place = tl.load(span + 6).to(tl.int64)
        local_rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        is_row = local_rows < num_rows
        rows = (tl.load(span) + local_rows).to(tl.int64)
        positions = first_position + tl.arange(0, BLOCK_M)
        # Every row sees the keys before `seen_by_all`, no row those from `end` on.
        seen_by_all = tl.minimum(tl.maximum(first_position + 1, prefix_len), key_end)
        end = tl.minimum(
            tl.maximum(tl.minimum(first_position + BLOCK_M, tl.load(span + 2) + num_rows), prefix_len), key_end
        )
        unmasked_end = key_begin + tl.maximum(seen_by_all - key_begin, 0) // BLOCK_N * BLOCK_N

        d = tl.arange(0, BLOCK_D)
        r = tl.arange(0, BLOCK_R)
        v = tl.arange(0, BLOCK_V)
        q_ptrs = q_ptr + rows[:, None] * q_row_stride + head * q_head_stride
        q_nope = tl.load(q_ptrs + d[None, :], mask=is_row[:, None] & (d[None, :] < D), other=0.0)
        q_rope = tl.load(q_ptrs + D + r[None, :], mask=is_row[:, None] & (r[None, :] < R), other=0.0)
        key_ptr = kv_ptr + place * kv_stride + head * (D + V)
        rope_ptr = latents_ptr + place * latents_stride + C

        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        for start in range(key_begin, unmasked_end, BLOCK_N):
            keys = start - key_begin + tl.arange(0, BLOCK_N)
            key_rows = key_ptr + keys[:, None] * kv_stride
            k_nope = tl.load(key_rows + d[None, :], mask=d[None, :] < D, other=0.0)
            k_rope = tl.load(rope_ptr + keys[:, None] * latents_stride + r[None, :], mask=r[None, :] < R, other=0.0)
            values = tl.load(key_rows + D + v[None, :], mask=v[None, :] < V, other=0.0)
            scores = tl.dot(q_nope, tl.trans(k_nope), input_precision="ieee")
            scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee")
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale_log2)
            weights = tl.exp2(scores * scale_log2 - new_maximum[:, None])
            rescale = tl.exp2(maximum - new_maximum)
            total = total * rescale + tl.sum(weights, axis=1)
            acc = tl.dot(weights.to(values.dtype), values, acc * rescale[:, None], input_precision="ieee")
            maximum = new_maximum
        for start in range(unmasked_end, end, BLOCK_N):
            keys = start - key_begin + tl.arange(0, BLOCK_N)
            is_key = start + tl.arange(0, BLOCK_N) < key_end
            key_rows = key_ptr + keys[:, None] * kv_stride
            k_nope = tl.load(key_rows + d[None, :], mask=is_key[:, None] & (d[None, :] < D), other=0.0)
            rope_rows = rope_ptr + keys[:, None] * latents_stride
            k_rope = tl.load(rope_rows + r[None, :], mask=is_key[:, None] & (r[None, :] < R), other=0.0)
            values = tl.load(key_rows + D + v[None, :], mask=is_key[:, None] & (v[None, :] < V), other=0.0)
            scores = tl.dot(q_nope, tl.trans(k_nope), input_precision="ieee")
            scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee")
            key_positions = start + tl.arange(0, BLOCK_N)
            last_seen = tl.maximum(positions, prefix_len - 1)
            is_seen = (key_positions[None, :] <= last_seen[:, None]) & is_key[None, :]
            scores = tl.where(is_seen, scores * scale_log2, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            origin = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)  # a row may see nothing of this pass
            weights = tl.exp2(scores - origin[:, None])
            rescale = tl.exp2(maximum - origin)
            total = total * rescale + tl.sum(weights, axis=1)
            acc = tl.dot(weights.to(values.dtype), values, acc * rescale[:, None], input_precision="ieee")
            maximum = new_maximum

        saw_nothing = total == 0.0
        total = tl.where(saw_nothing, 1.0, total)
        acc = acc / total[:, None]
        out_ptrs = out_ptr + (rows[:, None] * NUM_HEADS + head) * V + v[None, :]
        is_out = is_row[:, None] & (v[None, :] < V)
        if MERGES:
            lse = tl.where(saw_nothing, float("-inf"), maximum + tl.log2(total))
            lse_ptrs = lse_ptr + rows * NUM_HEADS + head
            if tl.load(span + 7) == 0:
                before = tl.load(lse_ptrs, mask=is_row, other=0.0)
                both = tl.maximum(lse, before)
                weight, weight_before = tl.exp2(lse - both), tl.exp2(before - both)
                share = weight / (weight + weight_before)
                acc = acc * share[:, None] + tl.load(out_ptrs, mask=is_out, other=0.0) * (1.0 - share)[:, None]
                lse = both + tl.log2(weight + weight_before)
            tl.store(lse_ptrs, lse, mask=is_row)
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=is_out)


@dataclass(frozen=True, slots=True)
class LatentPrefillConfig:
    """Tiles of `block_m` queries and `block_n` keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_config(dtype: torch.dtype, max_new: int) -> LatentPrefillConfig:
    """By the longest chunk: short ones fill smaller tiles. Float32 has no matrix units, and wants few registers."""
    if dtype is torch.float32:
        return LatentPrefillConfig(block_m=16, block_n=32, num_warps=8, num_stages=1)
    if max_new <= 64:
        return LatentPrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=2)
    return LatentPrefillConfig(block_m=128, block_n=64, num_warps=8, num_stages=2)


def latent_prefill_attention(
    q: Tensor,
    cache: Tensor,
    kv_b: Tensor,
    plan: LatentPrefillPlan,
    config: LatentConfig,
    counters: Tensor,
    tiles: LatentPrefillConfig | None = None,
) -> Tensor:
    """Every chunk's tokens attend to its sequence's latents, the chunk's own included.

    Args:
        q: [T, N, D + R], the last R features rotated (`latent_prepare`, in place).
        cache: the layer's latents, [slots, C + R], those of the step's tokens already in it.
        kv_b: [N * (D + V), C], a head's key projection above its value projection.
        plan: of the step.
        config: of the model's attention.
        counters: of `decode_counters`, for the chunks that attend absorbed.
        tiles: instead of `choose_config`'s, for tuning.

    Returns:
        [T, N * V].
    """
    num_tokens, num_heads, _ = q.shape
    shape = (num_tokens, num_heads, config.v_head_dim)
    # Passes add to one another in float32.
    out = torch.empty(shape, dtype=torch.float32 if plan.merges else q.dtype, device=q.device)
    lse = torch.empty(shape[:2], dtype=torch.float32, device=q.device) if plan.merges else out
    for expanded in plan.passes:
        _attend_expanded(q, cache, kv_b, expanded, config, out, lse, tiles or choose_config(q.dtype, expanded.max_new))
    result = out.to(q.dtype).flatten(1)
    if plan.absorbed is not None:
        attended = _attend_absorbed(q, cache, kv_b, plan.absorbed, plan.chunks.block_size, config, counters)
        if plan.absorbed.rows is None:
            return attended
        result.index_copy_(0, plan.absorbed.rows, attended)
    return result


def _attend_expanded(
    q: Tensor,
    cache: Tensor,
    kv_b: Tensor,
    expanded: ExpandedPass,
    config: LatentConfig,
    out: Tensor,
    lse: Tensor,
    tiles: LatentPrefillConfig,
) -> None:
    latents = cache.index_select(0, expanded.slots)
    kv = F.linear(latents[:, : config.kv_lora_rank], kv_b)
    assert kv.numel() < 1 << 31, "places in the workspace are 32 bits"
    nope, rope, v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    is_dependent = has_dependent_launch(q.device)
    _latent_prefill[triton.cdiv(expanded.max_new, tiles.block_m), q.shape[1], expanded.num_spans](
        q,
        kv,
        latents,
        expanded.table,
        out,
        lse,
        config.softmax_scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        latents.stride(0),
        NUM_HEADS=q.shape[1],
        C=config.kv_lora_rank,
        D=nope,
        R=rope,
        V=v_dim,
        BLOCK_D=max(16, triton.next_power_of_2(nope)),
        BLOCK_R=max(16, triton.next_power_of_2(rope)),
        BLOCK_V=max(16, triton.next_power_of_2(v_dim)),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        MERGES=lse is not out,
        IS_DEPENDENT=is_dependent,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        launch_pdl=is_dependent,
    )


def _attend_absorbed(
    q: Tensor,
    cache: Tensor,
    kv_b: Tensor,
    absorbed: AbsorbedRows,
    block_size: int,
    config: LatentConfig,
    counters: Tensor,
) -> Tensor:
    rows = q if absorbed.rows is None else q.index_select(0, absorbed.rows)
    nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
    of_heads = kv_b.view(q.shape[1], -1, rank)
    query = torch.empty(*rows.shape[:2], config.latent_dim, dtype=q.dtype, device=q.device)
    query[..., rank:] = rows[..., nope:]
    absorb_query(rows[..., :nope], of_heads[:, :nope], query[..., :rank])
    attended = latent_decode_attention(
        query, cache, absorbed.block_tables, absorbed.context_lens, block_size, config.softmax_scale, rank, counters
    )
    return expand_values(attended, of_heads[:, nope:])
