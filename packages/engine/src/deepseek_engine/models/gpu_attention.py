"""Attention on a GPU: the single-token rows of a step and its prefill chunks, over the paged cache of one layer.

T tokens: D single-token rows, then those of C chunks. N query heads, K key/value heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepseek_engine.gpu_step import ChunkRows, GpuStep, SingleRows
from deepseek_engine.kernels.flash_attention import FlashChunks, plan_flash_chunks
from deepseek_engine.kernels.latent_prefill_plan import LatentChunks, LatentPrefillPlan, plan_latent_prefill
from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.kernels.triton.decode_attention import decode_attention
from deepseek_engine.kernels.triton.decode_call import DecodeScratch
from deepseek_engine.kernels.triton.latent_decode import latent_decode_attention
from deepseek_engine.kernels.triton.latent_prefill import latent_prefill_attention
from deepseek_engine.kernels.triton.latent_prepare import latent_prepare
from deepseek_engine.kernels.triton.latent_projections import absorb_query, expand_values
from deepseek_engine.kernels.triton.prefill_attention import prefill_attention
from deepseek_engine.kernels.triton.rope_and_cache import rope_and_cache
from deepseek_engine.layers.latent_attention import LOW_RANK_NORM_EPS
from deepseek_engine.models.gpu_weights import GroupedQueryWeights, LatentWeights
from deepseek_engine.models.gpu_whole_prompts import ChunkRun, WholePrompts


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step as all its layers see it; made once a step.

    Attributes:
        positions: int32 [T].
        slots: int32 [T].
        num_singles: D, padding included.
        has_drafts: whether single rows need the keys of each other.
        latent_plan: how chunks attend to latents; None where there are none.
        runs: of chunks, some of them whole prompts; none where all chunks attend over pages.
        flash_chunks: the chunks as flash-attn takes them, where it attends.
    """

    singles: SingleRows | None
    chunks: ChunkRows | None
    positions: Tensor
    slots: Tensor
    num_singles: int
    has_drafts: bool
    latent_plan: LatentPrefillPlan | None
    runs: tuple[ChunkRun, ...] = ()
    flash_chunks: FlashChunks | None = None


class GpuAttention(Protocol):
    """One layer's attention between its two projections."""

    def attend(self, projected: Tensor, rows: StepRows) -> Tensor:
        """What the input projection gives, [T, ...], to what the output projection takes, [T, ...].

        The step's keys and values, or latents, are in the cache afterwards.
        """
        ...


class GroupedQuery:
    """Grouped-query attention."""

    def __init__(
        self,
        weights: GroupedQueryWeights,
        kv: PagedKV,
        cos_sin: Tensor,
        scratch: DecodeScratch,
        whole_prompts: WholePrompts | None,
    ) -> None:
        self._whole_prompts = whole_prompts
        self._kv, self._cos_sin, self._scratch = kv, cos_sin, scratch
        self._scale = weights.config.head_dim**-0.5
        self._norms = head_norms(weights)

    def attend(self, projected: Tensor, rows: StepRows) -> Tensor:
        """See `GpuAttention`."""
        singles, chunks = rows.singles, rows.chunks
        if singles is not None and chunks is None and not rows.has_drafts:
            return self._decode(projected, singles, self._cos_sin)
        k: Tensor | None = None
        if rows.runs:
            k = projected.new_empty(projected.shape[0], self._kv.num_heads, self._kv.head_dim)
        q = rope_and_cache(projected, self._kv, rows.positions, rows.slots, self._cos_sin, self._norms, k)

        def prefill(q: Tensor, chunks: ChunkRows) -> Tensor:
            if k is None:
                return self._prefill(q, chunks)
            v: Tensor = torch.unflatten(projected[:, -k[0].numel() :], 1, k.shape[1:])
            return self._prefill_in_runs(q, k[rows.num_singles :], v[rows.num_singles :], chunks, rows.runs)

        return attend_by_kind(q, rows, lambda q, singles: self._decode(q.flatten(1), singles, None), prefill)

    def _prefill(self, q: Tensor, chunks: ChunkRows) -> Tensor:
        return prefill_attention(
            q, self._kv, chunks.block_tables, chunks.cu_seqlens, chunks.context_lens,
            chunks.prefix_lens if any(chunks.host_prefix_lens) else None,
            max_seqlen_q=chunks.max_len, scale=self._scale,
            # Nobody attends for padding, and what comes behind must not meet what nobody wrote.
            out=torch.zeros_like(q) if chunks.is_padded else None,
        )  # fmt: skip

    def _prefill_in_runs(
        self, q: Tensor, k: Tensor, v: Tensor, chunks: ChunkRows, runs: tuple[ChunkRun, ...]
    ) -> Tensor:
        out = torch.empty_like(q)
        for run in runs:
            if run.padded is not None:
                assert self._whole_prompts is not None
                self._whole_prompts.attend(q, k, v, run, self._scale, out)
                continue
            of_run = slice(run.first, run.last)
            prefixes = chunks.prefix_lens[of_run] if any(chunks.host_prefix_lens[of_run]) else None
            prefill_attention(
                q, self._kv, chunks.block_tables[of_run], chunks.cu_seqlens[run.first : run.last + 1],
                chunks.context_lens[of_run], prefixes, max_seqlen_q=run.longest, scale=self._scale, out=out,
            )  # fmt: skip
        return out

    def _decode(self, projected: Tensor, singles: SingleRows, cos_sin: Tensor | None) -> Tensor:
        return decode_attention(
            projected, self._kv, singles.block_tables, singles.context_lens, self._scratch,
            scale=self._scale, cos_sin=cos_sin, norms=self._norms,
        )  # fmt: skip


def head_norms(weights: GroupedQueryWeights) -> HeadNorms | None:
    """Of query and key heads, where the model has them."""
    eps = weights.config.qk_norm_eps
    if weights.q_gain is None or weights.k_gain is None or eps is None:
        return None
    return HeadNorms(weights.q_gain, weights.k_gain, eps)


def attend_by_kind(
    q: Tensor,
    rows: StepRows,
    decode: Callable[[Tensor, SingleRows], Tensor],
    prefill: Callable[[Tensor, ChunkRows], Tensor],
) -> Tensor:
    """Attend with the single rows of [T, N, D] rotated queries by one function, with the chunks' by another; [T, N D].

    The keys and values of all are in the cache already.
    """
    parts: list[Tensor] = []
    if rows.singles is not None:
        parts.append(decode(q[: rows.num_singles], rows.singles).flatten(1))
    if rows.chunks is not None:
        parts.append(prefill(q[rows.num_singles :], rows.chunks).flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Latent:
    """Multi-head latent attention over cached latents; single rows see those from `first_token` on."""

    def __init__(
        self,
        weights: LatentWeights,
        latents: Tensor,
        block_size: int,
        cos_sin: Tensor,
        counters: Tensor,
        first_token: int = 0,
    ) -> None:
        self._weights, self._latents, self._block_size = weights, latents, block_size
        self._cos_sin, self._counters, self._first_token = cos_sin, counters, first_token

    def attend(self, projected: Tensor, rows: StepRows) -> Tensor:
        """See `GpuAttention`; `projected` is the query of all heads, then the latent."""
        weights, config = self._weights, self._weights.config
        width = config.num_attention_heads * config.qk_head_dim
        nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
        q: Tensor = torch.unflatten(projected[:, :width], 1, (config.num_attention_heads, config.qk_head_dim))
        latent = projected[:, width:]
        if rows.chunks is None:
            query = torch.empty(
                *q.shape[:2], config.latent_dim, dtype=projected.dtype, device=projected.device
            )  # fmt: skip
            self._prepare(q, latent, rows, query[..., rank:])
            return self._decode(q[..., :nope], query, rows.singles)
        self._prepare(q, latent, rows, q[..., nope:])
        assert rows.latent_plan is not None
        of_chunks = latent_prefill_attention(
            q[rows.num_singles :], self._latents, weights.kv_b, rows.latent_plan, config, self._counters
        )
        if rows.singles is None:
            return of_chunks
        singles = q[: rows.num_singles]
        query = torch.empty(*singles.shape[:2], config.latent_dim, dtype=q.dtype, device=q.device)
        query[..., rank:] = singles[..., nope:]
        return torch.cat((self._decode(singles[..., :nope], query, rows.singles), of_chunks))

    def store(self, latent: Tensor, rows: StepRows) -> None:
        """Cache what the projection gives behind the queries, [T, ...], and attend to nothing."""
        config = self._weights.config
        q = latent.new_empty(latent.shape[0], 0, config.qk_head_dim)
        self._prepare(q, latent, rows, q[..., config.qk_nope_head_dim :])

    def _prepare(self, q: Tensor, latent: Tensor, rows: StepRows, rotated: Tensor) -> None:
        latent_prepare(
            q, latent, self._weights.latent_gain, LOW_RANK_NORM_EPS, rows.positions, rows.slots, self._cos_sin,
            self._latents, rotated, interleaved=self._weights.config.rope_interleave,
        )  # fmt: skip

    def _decode(self, q_nope: Tensor, query: Tensor, singles: SingleRows | None) -> Tensor:
        assert singles is not None
        weights, config = self._weights, self._weights.config
        absorb_query(q_nope, weights.key_b, query[..., : config.kv_lora_rank])
        attended = latent_decode_attention(
            query, self._latents, singles.block_tables, singles.context_lens, self._block_size, config.softmax_scale,
            config.kv_lora_rank, self._counters, first_token=self._first_token,
        )  # fmt: skip
        return expand_values(attended, weights.value_b)


def step_rows(
    step: GpuStep,
    latent: LatentWeights | None,
    block_size: int,
    dtype: torch.dtype,
    whole_prompts: WholePrompts | None = None,
    *,
    has_flash: bool = False,
) -> StepRows:
    """What the layers need of a step, on the device already.

    Args:
        step: from `GpuInputs`.
        latent: a layer's weights where attention is latent.
        block_size: tokens a block.
        dtype: of the cache.
        whole_prompts: what attends for some chunks beside the pages; None where all read pages.
        has_flash: whether flash-attn attends.
    """
    parts = [part for part in (step.singles, step.chunks) if part is not None]
    plan = None
    if latent is not None and step.chunks is not None:
        chunks = step.chunks
        prefix_lens = chunks.host_prefix_lens if any(chunks.host_prefix_lens) else ()
        of_chunks = LatentChunks(
            chunks.first_rows, chunks.host_context_lens, prefix_lens, chunks.block_tables, block_size
        )  # fmt: skip
        plan = plan_latent_prefill(of_chunks, latent.config, dtype)
    return StepRows(
        singles=step.singles,
        chunks=step.chunks,
        positions=parts[0].positions if len(parts) == 1 else torch.cat([part.positions for part in parts]),
        slots=parts[0].slots if len(parts) == 1 else torch.cat([part.slots for part in parts]),
        num_singles=0 if step.singles is None else step.singles.token_ids.shape[0],
        has_drafts=step.has_drafts,
        latent_plan=plan,
        runs=() if whole_prompts is None or step.chunks is None else whole_prompts.runs(step.chunks),
        flash_chunks=_flash_chunks(step.chunks) if has_flash and step.chunks is not None else None,
    )


def _flash_chunks(chunks: ChunkRows) -> FlashChunks:
    return plan_flash_chunks(
        chunks.cu_seqlens, chunks.context_lens, chunks.block_tables, chunks.max_len, is_padded=chunks.is_padded
    )
