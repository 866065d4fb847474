"""A scheduled batch as tensors: which tokens, where their keys and values go, and what each attends to."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.kernels.torch_attention import (
    AttentionMetadata,
    DecodeGroup,
    PrefillChunk,
    padded_length,
    padded_queries,
)
from deepseek_engine.sequence import ScheduledSequence, Sequence

Ints = np.ndarray[Any, np.dtype[np.int64]]

GROUP_GROWTH = 2
GROUP_SLACK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What `Transformer.forward` takes. `rows_R` follows the batch's order.

    Each sequence has its `read_positions`, then its `num_sampled_rows`.

    `owners` is whose rows they are, in their order: a sequence and how many follow each other.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    rows_R: Tensor
    metadata: AttentionMetadata
    owners: tuple[tuple[Sequence, int], ...]


def prepare_step(batch: Seq[ScheduledSequence], block_size: int, mask_dtype: torch.dtype) -> StepInputs:
    """Lay the batch out: single tokens first, by length of context, then the prefill chunks one after another.

    A draft is a single token as well, of the same sequence with a longer context: keys and values are written before
    anything is attended to, so it finds those of the drafts before it, and its row is computed exactly as it would be
    in a later step.

    Args:
        batch: sequences with blocks for all their tokens up to the last new one, or the last draft.
        block_size: tokens a block.
        mask_dtype: of the additive attention masks; SDPA wants the queries' own.
    """
    singles = (
        _Single(s, offset) for s in batch if s.num_new_tokens == 1 for offset in range(1 + len(s.draft_token_ids))
    )
    decodes = sorted(singles, key=lambda single: single.context)
    prefills = [s for s in batch if s.num_new_tokens > 1]
    row_of: dict[tuple[int, int], int] = {}  # by sequence and offset behind its first new token
    token_ids: list[int] = []
    positions: list[Ints] = []
    slots: list[Ints] = []
    chunks: list[PrefillChunk] = []
    decode_groups: list[DecodeGroup] = []

    for group in _groups_of_similar_length(decodes):
        start = len(token_ids)
        contexts = np.array([single.context for single in group])
        tables = [single.scheduled.sequence.block_table for single in group]
        for row, single in enumerate(group):
            row_of[id(single.scheduled.sequence), single.offset] = start + row
            token_ids.append(single.token_id)
        positions.append(contexts - 1)
        decode_group, own_slots = group_decodes(tables, contexts, start, block_size, mask_dtype)
        decode_groups.append(decode_group)
        slots.append(own_slots)

    for scheduled in prefills:
        sequence, start = scheduled.sequence, len(token_ids)
        begin, end = sequence.num_computed_tokens, sequence.num_computed_tokens + scheduled.num_new_tokens
        sequence_slots = _slots_of_tables([sequence.block_table], block_size, padded_length(end))[0]
        token_ids.extend(sequence.token_ids[begin:end])
        positions.append(np.arange(begin, end))
        slots.append(sequence_slots[begin:end])
        row_of[id(sequence), 0] = start
        chunks.append(
            PrefillChunk(
                rows=slice(start, len(token_ids)),
                slots=torch.from_numpy(sequence_slots) if begin else None,
                mask=_chunk_mask(begin, end, sequence.prefix_len, mask_dtype),
            )
        )

    rows: list[int] = []
    for s in batch:
        sequence, last = s.sequence, s.num_new_tokens - 1
        first_row = row_of[id(sequence), 0]
        rows += [first_row + position - sequence.num_computed_tokens for position in s.read_positions]
        if s.needs_token:
            rows.append(first_row + last)
            rows += [row_of[id(sequence), offset] for offset in range(1, s.num_sampled_rows)]
    metadata = AttentionMetadata(
        slot_mapping_T=torch.from_numpy(np.concatenate(slots)),
        decode_groups=tuple(decode_groups),
        prefill_chunks=tuple(chunks),
    )
    return StepInputs(
        token_ids_T=torch.tensor(token_ids),
        positions_T=torch.from_numpy(np.concatenate(positions)),
        rows_R=torch.tensor(rows, dtype=torch.int64),
        metadata=metadata,
        owners=(*((d.scheduled.sequence, 1) for d in decodes), *((p.sequence, p.num_new_tokens) for p in prefills)),
    )


def group_decodes(
    tables: Seq[list[int]], contexts: Ints, first_row: int, block_size: int, mask_dtype: torch.dtype
) -> tuple[DecodeGroup, Ints]:
    """Single tokens that are attended for together, and the slot of each.

    Args:
        tables: of their sequences' blocks.
        contexts: tokens that each attends to, itself the last.
        first_row: the first one's in the step; the others follow.
        block_size: tokens a block.
        mask_dtype: as of `prepare_step`.
    """
    all_slots = _slots_of_tables(tables, block_size, padded_length(int(contexts.max())))
    group = DecodeGroup(
        rows=slice(first_row, first_row + len(tables)),
        slots=torch.from_numpy(all_slots.reshape(-1)),
        mask=_padding_mask(contexts, all_slots.shape[1], mask_dtype),
    )
    return group, all_slots[np.arange(len(tables)), contexts - 1]


@dataclass(frozen=True, slots=True)
class _Single:
    """A token that is computed by itself: a sequence's last one, or the draft `offset` places behind it."""

    scheduled: ScheduledSequence
    offset: int

    @property
    def context(self) -> int:
        """Tokens that it attends to, itself among them."""
        return self.scheduled.sequence.num_computed_tokens + 1 + self.offset

    @property
    def token_id(self) -> int:
        """What is embedded."""
        if self.offset:
            return self.scheduled.draft_token_ids[self.offset - 1]
        return self.scheduled.sequence.token_ids[self.scheduled.sequence.num_computed_tokens]


def _groups_of_similar_length(decodes: list[_Single]) -> list[list[_Single]]:
    """Split where padding short sequences to the longest would more than double the keys that are read."""
    groups: list[list[_Single]] = []
    limit = -1
    for single in decodes:
        if single.context > limit:
            groups.append([])
            limit = GROUP_GROWTH * single.context + GROUP_SLACK_TOKENS
        groups[-1].append(single)
    return groups


def _slots_of_tables(tables: Seq[list[int]], block_size: int, length: int) -> Ints:
    """Cache slots of each sequence's first `length` tokens, [B, length]; past a sequence's end, slots of block 0."""
    num_blocks = -(-length // block_size)
    blocks = np.zeros((len(tables), num_blocks), dtype=np.int64)
    for row, table in enumerate(tables):
        blocks[row, : len(table)] = table[:num_blocks]
    slots = blocks[:, :, None] * block_size + np.arange(block_size)
    return np.ascontiguousarray(slots.reshape(len(tables), -1)[:, :length])


def _padding_mask(contexts: Ints, length: int, dtype: torch.dtype) -> Tensor:
    is_padding = np.arange(length)[None, :] >= contexts[:, None]
    mask = torch.zeros(is_padding.shape, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(is_padding), float("-inf"))[:, None, None, :]


def _chunk_mask(begin: int, end: int, prefix_len: int, dtype: torch.dtype) -> Tensor | None:
    """Row i is token begin + i: it sees tokens 0 to begin + i, and all of the prefix if it belongs to it.

    None where attention can tell by itself: the sequence begins here, and every token sees those before it.
    """
    if begin == 0 and prefix_len == 0:
        return None
    mask = torch.full((padded_queries(end - begin), padded_length(end)), float("-inf"), dtype=dtype)
    mask.triu_(begin + 1)
    if begin < prefix_len:
        assert prefix_len <= end, "a prefix is computed in one chunk"
        mask[: prefix_len - begin, :prefix_len] = 0.0
    return mask
