"""A scheduled batch on the device: one pinned array, one copy a step, at addresses that CUDA graphs may hold.

Single tokens (decodes, and the drafts behind them) come first, each a row with a context of its own; prefill chunks
follow, one behind the other.

T tokens of the step, D single-token rows, C chunks, R rows whose logits are wanted, M blocks of a table.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.gpu_step import ChunkRows, GpuStep, SingleRows
from deepseek_engine.sequence import ScheduledSequence, Sequence, SequenceStatus

Ints = np.ndarray[Any, np.dtype[np.int32]]

NUM_BUFFERS: Final = 3
"""Pinned arrays in turn: the device may still read those of the two steps before while the next is prepared."""

NOT_PENDING: Final = -1
PADDING_SLOT: Final = -1
MAX_GRAPHED_CHUNKS: Final = 16
"""Prefill chunks of a step that a graph may hold."""
CHUNK_FIELDS: Final = ("token_ids", "positions", "slots", "cu_seqlens", "context_lens", "prefix_lens")
ROW_FIELDS: Final = ("token_ids", "sources", "positions", "slots", "context_lens")


class GpuInputs:
    """Lays batches out. Block tables are kept from step to step: only what is new of them is looked at.

    Args:
        max_singles: rows of one token at most; more are copied the slow way.
        max_blocks: of a sequence.
        block_size: tokens a block.
        device: where to.
    """

    def __init__(self, max_singles: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self._max_singles, self._max_blocks, self._block_size = max_singles, max_blocks, block_size
        self._device = device
        self._is_cuda = device.type == "cuda"
        size = max_singles * (len(ROW_FIELDS) + max_blocks)
        self._pinned = [torch.zeros(size, dtype=torch.int32, pin_memory=self._is_cuda) for _ in range(NUM_BUFFERS)]
        self._buffer = torch.zeros(size, dtype=torch.int32, device=device)
        self._turn = 0
        self._copied: list[torch.cuda.Event | None] = [None] * NUM_BUFFERS
        self._tables = np.zeros((max_singles + 1, max_blocks), dtype=np.int32)
        self._free_places = list(range(max_singles, -1, -1))
        self._places: dict[Sequence, _Place] = {}

    def clear(self) -> None:
        """Zeros in all static tensors, before graphs are captured over them.

        A batch's rows lie otherwise than another size's: what is left of one would be ids and blocks that do not exist.
        """
        self._buffer.zero_()

    def singles(self, num_rows: int) -> SingleRows:
        """The static tensors of a batch of that many rows, padding included."""
        return self._views(self._buffer, num_rows)

    def mixed(self, num_singles: int, num_tokens: int) -> GpuStep:
        """The static tensors of a step of so many single rows, none or all, and chunks of so many tokens."""
        flat = self._chunk_buffer[: self._mixed_size(num_tokens)]
        chunks, row_ids = self._mixed_views(flat, num_tokens)
        singles = self.singles(num_singles) if num_singles else None
        return GpuStep(singles, chunks, False, row_ids, self._max_singles, {})

    def reserve_chunks(self, num_tokens: int) -> None:
        """Make room for the static tensors of steps with chunks of up to so many tokens."""
        size = self._mixed_size(num_tokens)
        self._chunk_buffer = torch.zeros(size, dtype=torch.int32, device=self._device)
        self._chunk_pinned = [
            torch.zeros(size, dtype=torch.int32, pin_memory=self._is_cuda) for _ in range(NUM_BUFFERS)
        ]

    def prepare_mixed(
        self, batch: Seq[ScheduledSequence], num_singles: int, num_tokens: int, previous: Mapping[Sequence, int] | None
    ) -> GpuStep:
        """Copy a batch of single tokens and at most `MAX_GRAPHED_CHUNKS` chunks to the tensors of `mixed`.

        Args:
            batch: without drafts, prefixes and prompts to be read.
            num_singles: rows that the single tokens are padded to; 0 if there are none.
            num_tokens: tokens that the chunks are padded to.
            previous: as of `prepare`.
        """
        decodes = [s for s in batch if s.num_new_tokens == 1]
        prefills = [s for s in batch if s.num_new_tokens > 1]
        if num_singles:
            self._singles(decodes, num_singles, previous)
        else:
            self._take_turn()
        size = self._mixed_size(num_tokens)
        host = self._chunk_pinned[self._turn][:size]
        host.zero_()
        chunks, row_ids = self._mixed_views(host, num_tokens)
        slots, positions = chunks.slots.numpy(), chunks.positions.numpy()
        slots.fill(PADDING_SLOT)
        token_ids, tables = chunks.token_ids.numpy(), chunks.block_tables.numpy()
        first = 0
        for row, s in enumerate(prefills):
            begin, count = s.sequence.num_computed_tokens, s.num_new_tokens
            of_chunk = slice(first, first + count)
            first += count
            token_ids[of_chunk] = s.sequence.token_ids[begin : begin + count]
            of_sequence = np.arange(begin, begin + count, dtype=np.int32)
            positions[of_chunk] = of_sequence
            table = s.sequence.block_table
            tables[row, : len(table)] = table
            slots[of_chunk] = tables[row, of_sequence // self._block_size] * self._block_size + (
                of_sequence % self._block_size
            )
            chunks.cu_seqlens[row + 1] = first
            chunks.context_lens[row] = begin + count
        chunks.cu_seqlens[len(prefills) + 1 :] = first
        rows, sampled_row_of = self._rows(batch, num_singles)
        row_ids[: len(rows)] = torch.tensor(rows, dtype=torch.int32)
        self._chunk_buffer[:size].copy_(host, non_blocking=True)
        self._end_turn()
        return GpuStep(None, None, False, None, len(rows), sampled_row_of)

    def _mixed_size(self, num_tokens: int) -> int:
        return sum(self._mixed_sizes(num_tokens))

    def _mixed_sizes(self, num_tokens: int) -> tuple[int, ...]:
        count = MAX_GRAPHED_CHUNKS
        tables = count * self._max_blocks
        return (num_tokens, num_tokens, num_tokens, count + 1, count, count, tables, self._max_singles)

    def _mixed_views(self, flat: Tensor, num_tokens: int) -> tuple[ChunkRows, Tensor]:
        *views, tables, row_ids = torch.split(flat, list(self._mixed_sizes(num_tokens)))
        fields = dict(zip(CHUNK_FIELDS, views, strict=True))
        tables = tables.view(MAX_GRAPHED_CHUNKS, self._max_blocks)
        return ChunkRows(**fields, block_tables=tables, max_len=num_tokens, is_padded=True), row_ids

    def prepare(
        self, batch: Seq[ScheduledSequence], padded_to: int | None, previous: Mapping[Sequence, int] | None
    ) -> GpuStep:
        """Copy the batch to the device.

        Args:
            batch: sequences with blocks for all their tokens up to the last new one, or the last draft.
            padded_to: rows of a batch of single tokens; None does not pad.
            previous: each sequence's row in the step before, whose tokens are not known here yet.
        """
        decodes = [s for s in batch if s.num_new_tokens == 1]
        prefills = [s for s in batch if s.num_new_tokens > 1]
        num_singles = sum(1 + len(s.draft_token_ids) for s in decodes)
        has_drafts = num_singles > len(decodes)
        singles = self._singles(decodes, padded_to, previous) if decodes else None
        chunks = self._chunks(prefills) if prefills else None
        if not prefills and all(
            s.needs_token and (s.sequence.reading is None or not s.read_positions) for s in decodes
        ):
            return GpuStep(singles, chunks, has_drafts, None, num_singles, _first_rows(decodes))
        rows, sampled_row_of = self._rows(batch, num_singles)
        row_ids = self._to_device(np.array(rows, dtype=np.int32))
        return GpuStep(singles, chunks, has_drafts, row_ids, len(rows), sampled_row_of)

    def _rows(self, batch: Seq[ScheduledSequence], num_singles: int) -> tuple[list[int], dict[Sequence, int]]:
        rows: list[int] = []
        sampled_row_of: dict[Sequence, int] = {}
        next_single, next_chunk, num_sampled = 0, num_singles, 0  # padding of the single rows included
        for s in batch:
            if s.num_new_tokens == 1:
                first, size = next_single, 1 + len(s.draft_token_ids)
                next_single += size
            else:
                first, size = next_chunk, s.num_new_tokens
                next_chunk += size
            computed = s.sequence.num_computed_tokens
            rows += [first + position - computed for position in s.read_positions]
            if num_sampled_rows := s.num_sampled_rows:
                sampled_row_of[s.sequence] = num_sampled
                num_sampled += num_sampled_rows
                rows += range(first + size - num_sampled_rows, first + size)
        return rows, sampled_row_of

    def prepare_guesses(
        self, sequences: Seq[Sequence], num_behind: int, sources: Seq[int] | None, padded_to: int | None
    ) -> SingleRows:
        """Copy the rows that guess the tokens `num_behind` places behind the one after each sequence's last.

        Args:
            sequences: with blocks up to that place.
            num_behind: 0 reads the sequences' own last tokens.
            sources: of other tokens: each one's row in the guess before.
            padded_to: as of `prepare`.
        """
        rows = _Rows()
        for index, sequence in enumerate(sequences):
            token_id = sequence.token_ids[-1] if sources is None else 0
            source = NOT_PENDING if sources is None else sources[index]
            rows.add(token_id, source, len(sequence.token_ids) + num_behind, self._place_of(sequence))
        return self._copied_rows(rows, padded_to)

    def _singles(
        self, decodes: Seq[ScheduledSequence], padded_to: int | None, previous: Mapping[Sequence, int] | None
    ) -> SingleRows:
        rows = _Rows()
        num_drafts: list[int] = []
        for s in decodes:
            sequence = s.sequence
            computed = sequence.num_computed_tokens
            token_id = sequence.token_ids[computed]
            source = NOT_PENDING
            if token_id < 0:
                assert previous is not None, "a pending token without the step that samples it"
                token_id, source = 0, previous[sequence]
            rows.add(token_id, source, computed + 1, self._place_of(sequence))
            drafts = s.draft_token_ids
            if drafts:
                rows.token_ids += drafts
                rows.sources += [NOT_PENDING] * len(drafts)
            num_drafts.append(len(drafts))
        return self._copied_rows(rows, padded_to, num_drafts if len(rows.token_ids) > len(decodes) else None)

    def _copied_rows(self, rows: "_Rows", padded_to: int | None, num_drafts: Seq[int] | None = None) -> SingleRows:
        """Lay rows out and copy them; behind the row of each place come those of so many drafts."""
        num_rows = len(rows.token_ids)
        num_padded = num_rows if padded_to is None else padded_to
        # A batch with more drafts than rows were reserved for gets tensors of its own.
        is_static = num_padded <= self._max_singles
        size = num_padded * (len(ROW_FIELDS) + self._max_blocks)
        if is_static:
            self._take_turn()
            host = self._pinned[self._turn][:size]
        else:
            host = torch.empty(size, dtype=torch.int32)
        views = {name: host[i * num_padded : (i + 1) * num_padded].numpy() for i, name in enumerate(ROW_FIELDS)}
        tables = host[len(ROW_FIELDS) * num_padded :].numpy().reshape(num_padded, self._max_blocks)
        places, context_lens = np.array(rows.places), np.array(rows.contexts, dtype=np.int32)
        if num_drafts is not None:
            counts = np.array(num_drafts) + 1
            ends = np.cumsum(counts)
            places = np.repeat(places, counts)
            context_lens = np.repeat(context_lens - (ends - counts), counts).astype(np.int32)
            context_lens += np.arange(num_rows, dtype=np.int32)
        np.take(self._tables, places, axis=0, out=tables[:num_rows])
        positions = context_lens - 1
        views["token_ids"][:num_rows] = rows.token_ids
        views["sources"][:num_rows] = rows.sources
        views["context_lens"][:num_rows] = context_lens
        views["positions"][:num_rows] = positions
        blocks = tables[np.arange(num_rows), positions // self._block_size]
        views["slots"][:num_rows] = blocks * self._block_size + positions % self._block_size
        if num_padded > num_rows:
            for name, value in (("token_ids", 0), ("sources", NOT_PENDING), ("context_lens", 0), ("positions", 0)):
                views[name][num_rows:] = value
            views["slots"][num_rows:] = PADDING_SLOT
            tables[num_rows:] = 0
        if not is_static:
            return self._views(host.to(self._device), num_padded)
        self._buffer[:size].copy_(host, non_blocking=True)
        self._end_turn()
        return self._views(self._buffer, num_padded)

    def _take_turn(self) -> None:
        """Go on to the pinned array that was used longest ago, once the device has read it.

        Steps that sample nothing, as all chunks of a prompt but the last, are not waited for by anybody else.
        """
        self._turn = (self._turn + 1) % NUM_BUFFERS
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()

    def _end_turn(self) -> None:
        if self._is_cuda:
            copied = self._copied[self._turn] = torch.cuda.Event()
            copied.record()

    def _views(self, flat: Tensor, num_rows: int) -> SingleRows:
        fields = {name: flat[i * num_rows : (i + 1) * num_rows] for i, name in enumerate(ROW_FIELDS)}
        start = len(ROW_FIELDS) * num_rows
        tables = flat[start : start + num_rows * self._max_blocks].view(num_rows, self._max_blocks)
        return SingleRows(**fields, block_tables=tables)

    def _chunks(self, prefills: Seq[ScheduledSequence]) -> ChunkRows:
        token_ids: list[int] = []
        first_rows = [0]
        begins = [s.sequence.num_computed_tokens for s in prefills]
        ends = [begin + s.num_new_tokens for begin, s in zip(begins, prefills, strict=True)]
        num_blocks = -(-max(ends) // self._block_size)
        tables = np.zeros((len(prefills), num_blocks), dtype=np.int32)
        positions = np.concatenate([np.arange(b, e, dtype=np.int32) for b, e in zip(begins, ends, strict=True)])
        slots = np.empty_like(positions)
        for row, (s, begin, end) in enumerate(zip(prefills, begins, ends, strict=True)):
            token_ids += s.sequence.token_ids[begin:end]
            table = s.sequence.block_table[:num_blocks]
            tables[row, : len(table)] = table
            first = first_rows[-1]
            first_rows.append(first + end - begin)
            of_chunk = positions[first : first_rows[-1]]
            slots[first : first_rows[-1]] = (
                tables[row, of_chunk // self._block_size] * self._block_size + of_chunk % self._block_size
            )
        prefix_lens = [s.sequence.prefix_len for s in prefills]
        num_tokens, count = len(token_ids), len(prefills)
        parts = (token_ids, positions, slots, first_rows, ends, prefix_lens, tables.reshape(-1))
        flat = self._to_device(np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]))
        sizes = (num_tokens, num_tokens, num_tokens, count + 1, count, count, count * num_blocks)
        *views, of_blocks = torch.split(flat, list(sizes))
        return ChunkRows(
            **dict(zip(CHUNK_FIELDS, views, strict=True)),
            block_tables=of_blocks.view(count, num_blocks),
            max_len=max(s.num_new_tokens for s in prefills),
            first_rows=first_rows,
            host_context_lens=ends,
            host_prefix_lens=prefix_lens,
        )

    def _to_device(self, values: Ints) -> Tensor:
        """The caching allocator keeps pinned memory until the copy is done."""
        host = torch.from_numpy(values)
        return host.pin_memory().to(self._device, non_blocking=True) if self._is_cuda else host

    def _place_of(self, sequence: Sequence) -> int:
        """The row of `_tables` that holds the sequence's blocks, up to date."""
        place = self._places.get(sequence)
        if place is None:
            if not self._free_places:
                self._forget_idle()
            place = self._places[sequence] = _Place(self._free_places.pop())
        table = sequence.block_table
        if place.num_preemptions != sequence.num_preemptions:
            place.num_preemptions, place.num_blocks = sequence.num_preemptions, 0
        if len(table) > place.num_blocks:
            self._tables[place.index, place.num_blocks : len(table)] = table[place.num_blocks :]
            place.num_blocks = len(table)
        return place.index

    def _forget_idle(self) -> None:
        """Give back the places of sequences that do not run: fewer run than there are places."""
        for sequence in [each for each in self._places if each.status is not SequenceStatus.RUNNING]:
            self._free_places.append(self._places.pop(sequence).index)


def _first_rows(decodes: Seq[ScheduledSequence]) -> dict[Sequence, int]:
    """Each sequence's first row, where all rows are sampled."""
    found: dict[Sequence, int] = {}
    num_rows = 0
    for s in decodes:
        found[s.sequence] = num_rows
        num_rows += 1 + len(s.draft_token_ids)
    return found


@dataclass(slots=True)
class _Rows:
    """Rows of one token each, as lists; `places` are rows of the block tables.

    Places and contexts are those of each sequence's first row: what lies behind it follows from them.
    """

    token_ids: list[int] = field(default_factory=list[int])
    sources: list[int] = field(default_factory=list[int])
    contexts: list[int] = field(default_factory=list[int])
    places: list[int] = field(default_factory=list[int])

    def add(self, token_id: int, source: int, context: int, place: int) -> None:
        """One more row; `context` counts its own token."""
        self.token_ids.append(token_id)
        self.sources.append(source)
        self.contexts.append(context)
        self.places.append(place)


@dataclass(slots=True)
class _Place:
    """A sequence's row of block tables, and how many blocks of which life of the sequence are in it."""

    index: int
    num_preemptions: int = 0
    num_blocks: int = 0
