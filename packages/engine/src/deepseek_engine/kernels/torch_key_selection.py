"""Sparse attention's choice of keys with PyTorch operators: the step's masks, narrowed to each query's best keys.

T tokens of the step, N index heads, D index_head_dim, B sequences of a group, L keys with their padding.
"""

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from deepseek_engine.kernels.torch_attention import (
    AttentionMetadata,
    DecodeGroup,
    PrefillChunk,
    gather_group,
    keys_of_chunk,
    padded_queries,
)

MAX_SCORES: Final = 2**24
"""Numbers held at once while a chunk's queries are scored, 64 MB: as many rows as fit are scored together."""


def select_keys(
    q: Tensor, weights: Tensor, k: Tensor, cache: Tensor, metadata: AttentionMetadata, top_k: int
) -> AttentionMetadata:
    """Write the new index keys to the cache, then leave each query its `top_k` best-scored keys.

    The score of a key is `sum_n weights_n * relu(q_n . k)`; where scores are equal, `torch.topk` decides.

    Args:
        q: [T, N, D], rotated and scaled.
        weights: [T, N], float32.
        k: [T, D], rotated.
        cache: the layer's index keys, [slots, D].
        metadata: of this step, whose masks say what a query may see at all.
        top_k: keys a query; a context that is no longer needs no choice.

    Returns:
        The metadata with `-inf` in its masks for what was not chosen.

    Source: DeepSeek-V3.2-Exp, "DeepSeek Sparse Attention", equations 1 and 2.
    """
    cache.index_copy_(0, metadata.slot_mapping_T, k)
    return replace(
        metadata,
        decode_groups=tuple(_narrow_group(q, weights, cache, group, top_k) for group in metadata.decode_groups),
        prefill_chunks=tuple(_narrow_chunk(q, weights, k, cache, each, top_k) for each in metadata.prefill_chunks),
    )


def _narrow_group(q: Tensor, weights: Tensor, cache: Tensor, group: DecodeGroup, top_k: int) -> DecodeGroup:
    if group.mask.shape[-1] <= top_k:
        return group
    keys = gather_group(cache[:, None], group)  # [B, 1, L, D]
    scores = _score(q[group.rows, None].float(), weights[group.rows, None], keys[:, 0].float())
    mask = group.mask[:, 0]
    return replace(group, mask=_keep_best(scores, mask, top_k)[:, None])


def _narrow_chunk(
    q: Tensor, weights: Tensor, k: Tensor, cache: Tensor, chunk: PrefillChunk, top_k: int
) -> PrefillChunk:
    keys = keys_of_chunk(k[:, None], cache[:, None], chunk)[:, 0].float()
    if keys.shape[0] <= top_k:
        return chunk
    num_new, num_keys = chunk.rows.stop - chunk.rows.start, keys.shape[0]
    mask = chunk.mask
    if mask is None:
        mask = torch.full((padded_queries(num_new), num_keys), float("-inf"), dtype=k.dtype).triu_(1)
    narrowed = mask.clone()
    step = max(MAX_SCORES // (num_keys * q.shape[1]), 1)
    for start in range(0, num_new, step):
        block = slice(start, min(start + step, num_new))
        rows = slice(chunk.rows.start + block.start, chunk.rows.start + block.stop)
        scores = _score(q[rows].float(), weights[rows], keys)
        narrowed[block] = _keep_best(scores, mask[block], top_k)
    return replace(chunk, mask=narrowed)


def _score(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """[..., queries, N, D] and [..., L, D] to [..., queries, L], float32."""
    per_head = (q @ keys[..., None, :, :].transpose(-1, -2)).relu_()
    return (weights[..., None, :] @ per_head).squeeze(-2)


def _keep_best(scores: Tensor, mask: Tensor, top_k: int) -> Tensor:
    """The mask, and `-inf` for all but the best `top_k` of each row; a key that the mask hides stays hidden."""
    best = (scores + mask).topk(top_k, dim=-1).indices
    is_left_out = torch.ones(scores.shape, dtype=torch.bool).scatter_(-1, best, value=False)
    return mask.masked_fill(is_left_out, float("-inf"))
