"""How a step's prefill chunks attend to cached latents, decided once a step from lengths that the host knows.

T tokens, N heads, C kv_lora_rank, D qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim.

Two forms give the same result. Expanded: every latent becomes N keys and values, each pair of query and key then costs
N (D + R + V) multiplications. Absorbed: nothing is expanded, a pair costs N (2 C + R), and a row reads its latents for
itself. Many queries a key repay the expansion, few do not; `absorbed_limit` has the arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.model_config import LatentConfig

WORKSPACE_BYTES: Final = 256 << 20
"""Of expanded keys and values at a time: 32768 tokens of DeepSeek-V2-Lite."""

PRODUCT_FLOP_S: Final = 500e12
ATTENTION_FLOP_S: Final = 300e12
MEMORY_BYTES_S: Final = 3e12
"""What an H100 does of a large product, of attention and of copying; only their ratios matter."""

Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class LatentChunks:
    """Prefill chunks that lie one behind the other.

    Attributes:
        first_rows: where each begins, and the end of the last: [chunks + 1], from 0.
        context_lens: of each sequence, its new tokens included.
        prefix_lens: leading tokens of each that see each other in both directions; empty if all are causal.
        block_tables: int32 [chunks, M], on the device.
        block_size: tokens a block.
    """

    first_rows: Sequence[int]
    context_lens: Sequence[int]
    prefix_lens: Sequence[int]
    block_tables: Tensor
    block_size: int

    def __len__(self) -> int:
        return len(self.context_lens)

    def num_new(self, chunk: int) -> int:
        """Tokens of the step."""
        return self.first_rows[chunk + 1] - self.first_rows[chunk]

    def prefix_len(self, chunk: int) -> int:
        """0 if the chunk is causal."""
        return self.prefix_lens[chunk] if len(self.prefix_lens) else 0


@dataclass(frozen=True, slots=True)
class KeySpan:
    """Some of a sequence's tokens, expanded in one pass."""

    chunk: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class ExpandedPass:
    """Keys that the workspace holds at once, and the chunks that attend to them.

    Attributes:
        slots: int64 [keys], where their latents are cached.
        table: int32 [spans, 8]: first row, rows, position of the first row, prefix, first key, end of the keys, place
            of the first key in the workspace, whether it is the chunk's first pass.
        num_spans: rows of the table.
        max_new: rows of the longest chunk.
    """

    slots: Tensor
    table: Tensor
    num_spans: int
    max_new: int


@dataclass(frozen=True, slots=True)
class AbsorbedRows:
    """Rows that attend as decoding ones do. `rows` is None when they are all rows of the step."""

    rows: Tensor | None  # [rows], int64
    block_tables: Tensor  # int32 [rows, M]
    context_lens: Tensor  # int32 [rows]


@dataclass(frozen=True, slots=True)
class LatentPrefillPlan:
    """What each layer does with the chunks. `merges` says that some chunk attends in more than one pass."""

    chunks: LatentChunks
    passes: tuple[ExpandedPass, ...]
    absorbed: AbsorbedRows | None
    merges: bool


def absorbed_limit(config: LatentConfig, element_bytes: int) -> int:
    """New tokens up to which a chunk behind cached tokens attends absorbed; where both forms take the same time.

    Expanding a key takes a product of 2 C N (D + V) operations, and its N (D + V) numbers are written and read. A pair
    of query and key then takes 2 N (D + R + V) operations; absorbed 2 N (2 C + R), or the time in which a row reads a
    latent, whichever is longer. Both grow with the number of keys, which cancels out: 39 tokens of DeepSeek-V2-Lite,
    169 of V3.
    """
    heads, rank, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    width = config.qk_nope_head_dim + config.v_head_dim
    expand_key = 2 * rank * heads * width / PRODUCT_FLOP_S + 2 * heads * width * element_bytes / MEMORY_BYTES_S
    expanded_pair = 2 * heads * (width + rope) / ATTENTION_FLOP_S
    read_latent = (rank + rope) * element_bytes / MEMORY_BYTES_S
    absorbed_pair = max(2 * heads * (2 * rank + rope) / ATTENTION_FLOP_S, read_latent)
    return int(expand_key / max(absorbed_pair - expanded_pair, 1e-15))


def plan_latent_prefill(
    chunks: LatentChunks, config: LatentConfig, dtype: torch.dtype, workspace_bytes: int = WORKSPACE_BYTES
) -> LatentPrefillPlan:
    """Decide for every chunk whether it expands, and in which passes.

    Args:
        chunks: of the step.
        config: the model's attention.
        dtype: of the cache.
        workspace_bytes: of the keys and values expanded at once; one key at least.

    Raises:
        ValueError: a chunk has more new tokens than context, or more context than its block table has room for.
    """
    room = chunks.block_tables.shape[1] * chunks.block_size
    for chunk, context_len in enumerate(chunks.context_lens):
        if not chunks.num_new(chunk) <= context_len <= room:
            raise ValueError(
                f"context_lens[{chunk}]={context_len} has to be between its {chunks.num_new(chunk)} new tokens and the "
                f"{room} tokens of its block table"
            )
    limit = absorbed_limit(config, dtype.itemsize)
    absorbed = [c for c in range(len(chunks)) if chunks.num_new(c) <= min(limit, chunks.context_lens[c] - 1)]
    expanded = [c for c in range(len(chunks)) if c not in set(absorbed) and chunks.num_new(c)]
    key_bytes = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim) * dtype.itemsize
    groups = _passes(chunks, expanded, max(1, workspace_bytes // key_bytes))
    return LatentPrefillPlan(
        chunks=chunks,
        passes=tuple(_expanded_pass(chunks, spans) for spans in groups),
        absorbed=_absorbed_rows(chunks, absorbed) if absorbed else None,
        merges=sum(map(len, groups)) > len(expanded),
    )


def _passes(chunks: LatentChunks, expanded: list[int], capacity: int) -> list[list[KeySpan]]:
    """Fill one pass after another; a sequence that does not fit goes on in the next."""
    groups: list[list[KeySpan]] = []
    left = 0
    for chunk in expanded:
        begin, context_len = 0, chunks.context_lens[chunk]
        while begin < context_len:
            if not left:
                groups.append([])
                left = capacity
            end = min(context_len, begin + left)
            groups[-1].append(KeySpan(chunk, begin, end))
            left -= end - begin
            begin = end
    return groups


def _expanded_pass(chunks: LatentChunks, spans: list[KeySpan]) -> ExpandedPass:
    lengths = np.array([span.end - span.begin for span in spans])
    places = np.cumsum(lengths) - lengths
    table = np.empty((len(spans), 8), dtype=np.int32)
    for row, span in enumerate(spans):
        num_new, context_len = chunks.num_new(span.chunk), chunks.context_lens[span.chunk]
        first_row, prefix = chunks.first_rows[span.chunk], min(chunks.prefix_len(span.chunk), context_len)
        first_position = context_len - num_new
        table[row] = first_row, num_new, first_position, prefix, span.begin, span.end, places[row], span.begin == 0
    owners = np.concatenate([np.full(span.end - span.begin, span.chunk, dtype=np.int32) for span in spans])
    positions = np.concatenate([np.arange(span.begin, span.end, dtype=np.int32) for span in spans])
    return ExpandedPass(
        slots=_slots(chunks, owners, positions),
        table=_on_device(table, chunks.block_tables.device),
        num_spans=len(spans),
        max_new=max(chunks.num_new(span.chunk) for span in spans),
    )


def _slots(chunks: LatentChunks, owners: Ints, positions: Ints) -> Tensor:
    device = chunks.block_tables.device
    owners_K, positions_K = _on_device(owners, device).long(), _on_device(positions, device).long()
    blocks_K = chunks.block_tables[owners_K, positions_K // chunks.block_size].long()
    return blocks_K * chunks.block_size + positions_K % chunks.block_size


def _absorbed_rows(chunks: LatentChunks, absorbed: list[int]) -> AbsorbedRows:
    device = chunks.block_tables.device
    counts = [chunks.num_new(chunk) for chunk in absorbed]
    rows = np.concatenate([np.arange(chunks.first_rows[c], chunks.first_rows[c + 1], dtype=np.int32) for c in absorbed])
    visible = [
        np.maximum(np.arange(context_len - num_new, context_len) + 1, min(chunks.prefix_len(chunk), context_len))
        for chunk, num_new in zip(absorbed, counts, strict=True)
        for context_len in [chunks.context_lens[chunk]]
    ]
    owners = np.repeat(np.array(absorbed, dtype=np.int32), counts)
    return AbsorbedRows(
        rows=None if len(rows) == chunks.first_rows[-1] else _on_device(rows, device).long(),
        block_tables=chunks.block_tables[_on_device(owners, device).long()],
        context_lens=_on_device(np.concatenate(visible).astype(np.int32), device),
    )


def _on_device(array: Ints, device: torch.device) -> Tensor:
    """From pinned memory on a CUDA device: other copies wait for all work before them."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
