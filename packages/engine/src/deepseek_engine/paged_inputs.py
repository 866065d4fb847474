"""A scheduled batch as the fused decoders take it: token ids, and each sequence's pages as they are."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.kernels.cpu.attention import PagedBatch
from deepseek_engine.sequence import ScheduledSequence


@dataclass(frozen=True, slots=True)
class PagedInputs:
    """What `FusedDecoder.hidden` takes. `rows_R` is laid out as in `StepInputs`."""

    token_ids_T: Tensor
    rows_R: Tensor
    batch: PagedBatch


def prepare_paged_step(batch: Seq[ScheduledSequence], block_size: int) -> PagedInputs:
    """Lay the batch out, sequence after sequence in the batch's order.

    Args:
        batch: sequences with blocks for all their tokens up to the last new one, or the last draft.
        block_size: tokens a block.
    """
    first_rows = np.zeros(len(batch) + 1, dtype=np.int32)
    context_lens = np.empty(len(batch), dtype=np.int32)
    token_ids: list[int] = []
    rows: list[int] = []
    for index, scheduled in enumerate(batch):
        sequence = scheduled.sequence
        begin, end = sequence.num_computed_tokens, sequence.num_computed_tokens + scheduled.num_new_tokens
        rows.extend(len(token_ids) + position - begin for position in scheduled.read_positions)
        token_ids.extend(sequence.token_ids[begin:end])
        token_ids.extend(scheduled.draft_token_ids)
        first_rows[index + 1], context_lens[index] = len(token_ids), end + len(scheduled.draft_token_ids)
        rows.extend(range(len(token_ids) - scheduled.num_sampled_rows, len(token_ids)))
    prefix_lens = [s.sequence.prefix_len for s in batch]
    num_blocks = -(-int(context_lens.max()) // block_size)
    tables = [s.sequence.block_table[:num_blocks] for s in batch]
    flat = np.fromiter(chain.from_iterable(table + [0] * (num_blocks - len(table)) for table in tables), np.int32)
    return PagedInputs(
        token_ids_T=torch.tensor(token_ids),
        rows_R=torch.tensor(rows, dtype=torch.int64),
        batch=PagedBatch(
            first_rows=torch.from_numpy(first_rows),
            context_lens=torch.from_numpy(context_lens),
            block_tables=torch.from_numpy(flat.reshape(len(batch), num_blocks)),
            block_size=block_size,
            prefix_lens=torch.tensor(prefix_lens, dtype=torch.int32) if any(prefix_lens) else None,
        ),
    )
