"""What the layer for multi-token prediction reads: each token's embedding and the hidden state before it, normed.

T tokens of a step, or rows to guess for; H hidden_size, M blocks of a table, N states that are kept of a block.

The state before a token is that of the row above where the step computes both, one that the caller has of its row, or
one that an earlier step has left behind: `HiddenTails` says where. A row finds it by its own position and blocks, on
the device, so that a CUDA graph may hold the launch.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions from their source: their values have no Python types.

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from deepseek_engine.kernels.triton.launch import has_dependent_launch, let_next_begin, power_of_two, wait_for_inputs
from deepseek_engine.kernels.triton.norm import choose_num_warps, normalise


@dataclass(frozen=True, slots=True)
class StatePlaces:
    """Where rows find the states before them, and leave their own.

    Attributes:
        positions: int32 [T].
        slots: int32 [T], where a row is cached; negative for padding.
        block_tables: int32, [T, M] or one for several rows.
        table_rows: int32 [T], each row's among the tables, for chunks of prompts; None if each row has its own.
        block_size: tokens a block.
        ring: N.
    """

    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    table_rows: Tensor | None
    block_size: int
    ring: int


@triton.jit(
    do_not_specialize=["positions_ptr", "slots_ptr", "tables_ptr", "table_rows_ptr", "sources_ptr", "table_stride"]
)
def _merge_inputs(
    embedding_ptr, states_ptr, tails_ptr, embedding_gain_ptr, state_gain_ptr, out_ptr,
    positions_ptr, slots_ptr, tables_ptr, table_rows_ptr, sources_ptr, table_stride, eps,
    H: tl.constexpr, BLOCK_SIZE: tl.constexpr, RING: tl.constexpr, HAS_TABLE_ROWS: tl.constexpr,
    HAS_SOURCES: tl.constexpr, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < H
    embedding_gain = tl.load(embedding_gain_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    state_gain = tl.load(state_gain_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    nothing = tl.zeros((BLOCK,), tl.float32)
    embedding = tl.load(embedding_ptr + row * H + channel, mask=mask, other=0.0).to(tl.float32)
    normed = normalise(embedding, embedding_gain, nothing, eps, mask, H, False)
    tl.store(out_ptr + row * 2 * H + channel, normed.to(out_ptr.dtype.element_ty), mask=mask)

    position = tl.load(positions_ptr + row)
    before = tl.maximum(position - 1, 0)
    table_row = row
    if HAS_TABLE_ROWS:
        table_row = tl.load(table_rows_ptr + row).to(tl.int64)
    block = tl.load(tables_ptr + table_row * table_stride + before // BLOCK_SIZE).to(tl.int64)
    offset = before % BLOCK_SIZE
    if HAS_SOURCES:
        source = tl.load(sources_ptr + row).to(tl.int64)
    else:
        # Nobody but a sequence itself writes its slots: who wrote the one before has computed the token before.
        above = tl.load(slots_ptr + row - 1, mask=row > 0, other=-1).to(tl.int64)
        source = tl.where((position > 0) & (above == block * BLOCK_SIZE + offset), row - 1, -1)
    is_here = source >= 0
    here = tl.load(states_ptr + source * H + channel, mask=mask & is_here, other=0.0)
    place = block * RING + offset % RING
    # What is written of position 0 is never read: there is no state before it.
    kept = tl.load(tails_ptr + place * H + channel, mask=mask & (source < 0) & (position > 0), other=0.0)
    state = tl.where(is_here, here.to(tl.float32), kept.to(tl.float32))
    normed = normalise(state, state_gain, nothing, eps, mask, H, False)
    tl.store(out_ptr + row * 2 * H + H + channel, normed.to(out_ptr.dtype.element_ty), mask=mask)


def merge_inputs(
    embedding_TH: Tensor,
    states: Tensor,
    tails: Tensor,
    embedding_gain: Tensor,
    state_gain: Tensor,
    eps: float,
    places: StatePlaces,
    sources: Tensor | None,
    out: Tensor,
) -> None:
    """Norm each token's embedding and the hidden state of the token before it, side by side.

    Args:
        embedding_TH: of the rows' tokens.
        states: [any, H]. Without `sources`: the rows' own; the row below may be the token after.
        tails: [blocks * N, H], states that were kept.
        embedding_gain: [H], of the embedding's norm.
        state_gain: [H], of the state's.
        eps: of both.
        places: of the rows.
        sources: int32 [T], the row of `states` that holds the state before; negative if it is among the tails.
        out: [T, 2 H], written.
    """
    num_tokens, size = embedding_TH.shape
    assert out.shape == (num_tokens, 2 * size)
    assert out.is_contiguous()
    assert embedding_TH.is_contiguous()
    assert states.is_contiguous()
    if not num_tokens:
        return
    _merge_inputs[(num_tokens,)](
        embedding_TH, states, tails, embedding_gain, state_gain, out,
        places.positions, places.slots, places.block_tables, places.table_rows, sources,
        places.block_tables.stride(0), eps, HAS_SOURCES=sources is not None, **_options(embedding_TH, places),
    )  # fmt: skip


@triton.jit(do_not_specialize=["slots_ptr", "table_rows_ptr", "num_tokens"])
def _keep_states(
    states_ptr, tails_ptr, slots_ptr, table_rows_ptr, num_tokens,
    H: tl.constexpr, BLOCK_SIZE: tl.constexpr, RING: tl.constexpr, HAS_TABLE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    let_next_begin(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    offset = slot % BLOCK_SIZE
    is_kept = slot >= 0
    if HAS_TABLE_ROWS:
        own = tl.load(table_rows_ptr + row)
        below = tl.load(table_rows_ptr + row + 1, mask=row + 1 < num_tokens, other=-1)
        is_kept &= (offset == BLOCK_SIZE - 1) | (below != own)
    mask = (channel < H) & is_kept
    state = tl.load(states_ptr + row * H + channel, mask=mask, other=0.0)
    place = slot // BLOCK_SIZE * RING + offset % RING
    tl.store(tails_ptr + place * H + channel, state, mask=mask)


def keep_states(states_TH: Tensor, tails: Tensor, places: StatePlaces) -> None:
    """Leave the states of a step's rows for later ones: of a chunk, those of each block's last token.

    Behind `merge_inputs`, which reads what this may write over.

    Args:
        states_TH: of the rows.
        tails: [blocks * N, H], written.
        places: of the rows.
    """
    num_tokens = states_TH.shape[0]
    assert states_TH.is_contiguous()
    if not num_tokens:
        return
    _keep_states[(num_tokens,)](
        states_TH, tails, places.slots, places.table_rows, num_tokens, **_options(states_TH, places)
    )


def _options(rows_TH: Tensor, places: StatePlaces) -> dict[str, Any]:
    """What both kernels are compiled for, and how they are launched."""
    num_tokens, size = rows_TH.shape
    block = max(power_of_two(size), 128)
    is_dependent = has_dependent_launch(rows_TH.device)
    return {
        "H": size,
        "BLOCK_SIZE": places.block_size,
        "RING": places.ring,
        "HAS_TABLE_ROWS": places.table_rows is not None,
        "BLOCK": block,
        "IS_DEPENDENT": is_dependent,
        "num_warps": choose_num_warps(block, num_tokens),
        "launch_pdl": is_dependent,
    }
