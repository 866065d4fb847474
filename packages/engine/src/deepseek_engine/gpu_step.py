"""A step as a GPU has it: rows of single tokens, prefill chunks, and which rows are wanted.

T tokens of the step, D single-token rows, C chunks, R rows whose logits are wanted, M blocks of a table.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from deepseek_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class SingleRows:
    """Rows of one token each, on the device; those past the batch are padding, with a context of 0.

    Attributes:
        token_ids: int32 [D]; what a row embeds, unless it has a source.
        sources: int32 [D], row of the step before whose sampled token is embedded instead; -1 for none.
        positions: int32 [D].
        slots: int32 [D], where a row is cached; -1 for padding.
        context_lens: int32 [D], tokens with the row's own.
        block_tables: int32 [D, M].
    """

    token_ids: Tensor
    sources: Tensor
    positions: Tensor
    slots: Tensor
    context_lens: Tensor
    block_tables: Tensor


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Prefill chunks, on the device and, where the host decides by them, in lists.

    Attributes:
        token_ids: int32 [tokens].
        positions: int32 [tokens].
        slots: int32 [tokens].
        cu_seqlens: int32 [C + 1], where each begins among the chunks' tokens.
        context_lens: int32 [C].
        prefix_lens: int32 [C].
        block_tables: int32 [C, M].
        max_len: tokens of a chunk at most.
        is_padded: whether tokens and chunks of no sequence follow, for a graph of this size; the lists are empty then.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    cu_seqlens: Tensor
    context_lens: Tensor
    prefix_lens: Tensor
    block_tables: Tensor
    max_len: int
    is_padded: bool = False
    first_rows: Seq[int] = ()
    host_context_lens: Seq[int] = ()
    host_prefix_lens: Seq[int] = ()


@dataclass(frozen=True, slots=True)
class GpuStep:
    """What a step computes.

    Attributes:
        has_drafts: whether rows of one sequence need each other's keys.
        row_ids: int32 [R], rows wanted, in the batch's order; None if they are the single rows as they come.
        num_rows: R; padding included where the tensors are those of a graph.
        sampled_row_of: each sequence's row among those sampled, for the step after.
    """

    singles: SingleRows | None
    chunks: ChunkRows | None
    has_drafts: bool
    row_ids: Tensor | None
    num_rows: int
    sampled_row_of: Mapping[Sequence, int]
