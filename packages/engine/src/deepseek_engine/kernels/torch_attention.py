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
    """One sequence's new tokens; `slots` holds all its tokens and padding, None when nothing came before them."""

    rows: slice
    slots: Tensor | None  # [padded tokens], int64
    mask: Tensor | None  # [padded new tokens, padded tokens]: new token i sees all before it and itself


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
    parts = [_decode(q[group.rows], keys, values, group) for group in metadata.decode_groups]
    for chunk in metadata.prefill_chunks:
        rows = chunk.rows
        if chunk.slots is None:
            padding = (0, 0, 0, 0, 0, padded_length(rows.stop - rows.start) - (rows.stop - rows.start))
            parts.append(_prefill(q[rows], F.pad(k[rows], padding), F.pad(v[rows], padding), None))
        else:
            parts.append(_prefill(q[rows], keys[chunk.slots], values[chunk.slots], chunk.mask))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode(q: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup) -> Tensor:
    """The G query heads of a key/value head become G queries of one head: no key is copied for its group."""
    num_sequences, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    length = group.slots.shape[0] // num_sequences
    k = keys.index_select(0, group.slots).view(num_sequences, length, num_kv_heads, head_dim).transpose(1, 2)
    v = values.index_select(0, group.slots).view(num_sequences, length, num_kv_heads, head_dim).transpose(1, 2)
    grouped = q.view(num_sequences, num_kv_heads, num_heads // num_kv_heads, head_dim)
    mask = group.mask.expand(-1, -1, grouped.shape[2], -1)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(num_sequences, -1)


def _prefill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One sequence; without a mask query i sees keys 0 to i."""
    num_new, num_heads, _ = q.shape
    repeats = num_heads // k.shape[1]
    k = k.repeat_interleave(repeats, dim=1).transpose(0, 1)
    v = v.repeat_interleave(repeats, dim=1).transpose(0, 1)
    q = F.pad(q, (0, 0, 0, 0, 0, padded_queries(num_new) - num_new)).transpose(0, 1)
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None)
    return out[0, :, :num_new].transpose(0, 1).reshape(num_new, -1)
