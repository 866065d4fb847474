"""Attention over a paged cache with PyTorch operators: gather the pages, then SDPA. Serves CPUs.

T tokens of the step, B decoding sequences of a group, L slots gathered for each, D head_dim, G query heads a key/value
head.

Keys are padded to a multiple of 64 and masked. The matrix products inside SDPA add in an order that depends on the
number of keys modulo 64, so without that a sequence's bfloat16 results would change with the lengths of its neighbours.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_PADDING: Final = 64


QUERY_PADDING: Final = 32
"""SDPA takes queries in blocks of a multiple of this; a last block of one row would be added up in another order."""


def padded_queries(num_queries: int) -> int:
    """Queries of a prefill chunk with their padding; never more than its padded keys."""
    return -(-num_queries // QUERY_PADDING) * QUERY_PADDING


def padded_length(num_keys: int) -> int:
    """Keys with their padding."""
    return -(-num_keys // KEY_PADDING) * KEY_PADDING


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences of similar length that add one token each; their rows lie together in the batch.

    `mask` is 0 where a sequence has a token and -inf where L runs past its end. It is there even when every sequence
    fills L: SDPA scales its scores differently with and without a mask, and a token must not depend on its batch.
    """

    rows: slice
    slots: Tensor  # [B * L], int64
    mask: Tensor  # [B, 1, 1, L]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """One sequence's new tokens.

    `slots` holds all its tokens and padding, None when nothing came before them. `mask` is None when query i sees keys
    0 to i and no others; otherwise 0 for what a query sees and -inf for the rest.
    """

    rows: slice
    slots: Tensor | None  # [padded tokens], int64
    mask: Tensor | None  # [padded new tokens, padded tokens]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the step's tokens go and what each attends to; built once a step, read by every layer."""

    slot_mapping_T: Tensor
    decode_groups: tuple[DecodeGroup, ...]
    prefill_chunks: tuple[PrefillChunk, ...]


def attend(q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], metadata: AttentionMetadata) -> Tensor:
    """Write the new keys and values to the cache, then attend.

    Args:
        q: [T, heads, D], rotated.
        k: [T, kv heads, D], rotated.
        v: [T, kv heads, D].
        cache: the layer's keys and values.
        metadata: of this step.

    Returns:
        [T, heads * D].
    """
    keys, values = cache
    keys.index_copy_(0, metadata.slot_mapping_T, k)
    values.index_copy_(0, metadata.slot_mapping_T, v)
    parts = [
        _decode(q[group.rows], gather_group(keys, group), gather_group(values, group), group.mask, None)
        for group in metadata.decode_groups
    ]
    for chunk in metadata.prefill_chunks:
        k_new, v_new = keys_of_chunk(k, keys, chunk), keys_of_chunk(v, values, chunk)
        parts.append(_prefill(q[chunk.rows], k_new, v_new, chunk.mask, None))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_latent(
    q: Tensor, latent: Tensor, cache: Tensor, metadata: AttentionMetadata, scale: float, value_dim: int
) -> Tensor:
    """Write the new latents to the cache, then attend; all heads share the one cached vector of a token.

    Args:
        q: [T, heads, D], folded into the latent's space.
        latent: [T, D], key and value at once.
        cache: the layer's latents, [slots, D].
        metadata: of this step.
        scale: of the scores.
        value_dim: the leading features of a latent that are its value.

    Returns:
        [T, heads, value_dim].

    Source: the absorbed form of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).
    """
    cache.index_copy_(0, metadata.slot_mapping_T, latent)
    # Values keep the key's width, and the result is cut: equal widths are what SDPA's fused kernel takes.
    keys = cache[:, None]
    parts: list[Tensor] = []
    for group in metadata.decode_groups:
        gathered = gather_group(keys, group)
        parts.append(_decode(q[group.rows], gathered, gathered, group.mask, scale))
    for chunk in metadata.prefill_chunks:
        of_chunk = keys_of_chunk(latent[:, None], keys, chunk)
        parts.append(_prefill(q[chunk.rows], of_chunk, of_chunk, chunk.mask, scale))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.view(q.shape)[..., :value_dim]


def gather_group(cached: Tensor, group: DecodeGroup) -> Tensor:
    """A group's cached tokens, [B, kv heads, L, D]."""
    num_sequences = group.rows.stop - group.rows.start
    gathered = cached.index_select(0, group.slots)
    return gathered.view(num_sequences, -1, *gathered.shape[1:]).transpose(1, 2)


def keys_of_chunk(new: Tensor, cached: Tensor, chunk: PrefillChunk) -> Tensor:
    """All tokens of a chunk's sequence, padded, [padded tokens, kv heads, D]; straight from the step if all are new."""
    if chunk.slots is not None:
        return cached[chunk.slots]
    num_tokens = chunk.rows.stop - chunk.rows.start
    return F.pad(new[chunk.rows], (0, 0, 0, 0, 0, padded_length(num_tokens) - num_tokens))


def _decode(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """The G query heads of a key/value head become G queries of one head: no key is copied for its group."""
    num_sequences, num_heads, head_dim = q.shape
    grouped = q.view(num_sequences, k.shape[1], num_heads // k.shape[1], head_dim)
    mask = mask.expand(-1, -1, grouped.shape[2], -1)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale).reshape(num_sequences, -1)


def _prefill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """One sequence; without a mask query i sees keys 0 to i."""
    num_new, num_heads, _ = q.shape
    k, v = _for_every_head(k, num_heads), _for_every_head(v, num_heads)
    q = F.pad(q, (0, 0, 0, 0, 0, padded_queries(num_new) - num_new)).transpose(0, 1)
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale)
    return out[0, :, :num_new].transpose(0, 1).reshape(num_new, -1)


def _for_every_head(x: Tensor, num_heads: int) -> Tensor:
    """[tokens, kv heads, D] to [heads, tokens, D]; a single kv head is not copied."""
    if x.shape[1] == 1:
        return x.expand(-1, num_heads, -1).transpose(0, 1)
    return x.repeat_interleave(num_heads // x.shape[1], dim=1).transpose(0, 1)
