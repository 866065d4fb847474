"""Embeddings beside the hidden states before them, and the states that are kept: row by row against the definition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_engine.hidden_tails import HiddenTails
from deepseek_engine.kernels.reference import merge_inputs as reference
from deepseek_engine.kernels.triton.merge_inputs import StatePlaces, keep_states, merge_inputs

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative, of the whole result: float32 sums in another order; a bfloat16 result is rounded once (2^-9)."""
SIZE = 576 if IS_CUDA else 72
BLOCK_SIZE, NUM_BLOCKS = 4, 12

Rows = list[tuple[int, int]]
"""Sequence and position of each; a negative sequence is padding."""
TABLES = [[7, 2, 5], [7, 2, 9], [1, 3, 0], [4, 11, 8]]
"""The first two share their beginning."""


def places_of(rows: Rows, *, are_chunks: bool) -> StatePlaces:
    tables = [TABLES[max(sequence, 0)] for sequence, _ in rows]
    slots = [
        table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE if sequence >= 0 else -1
        for table, (sequence, position) in zip(tables, rows, strict=True)
    ]
    return StatePlaces(
        positions=ints([position for _, position in rows]),
        slots=ints(slots),
        block_tables=ints(TABLES if are_chunks else tables),
        table_rows=ints([sequence for sequence, _ in rows]) if are_chunks else None,
        block_size=BLOCK_SIZE,
        ring=3,
    )


def ints(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def random(seed: int, num_rows: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(num_rows, SIZE, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def run(merge: Callable[..., None], places: StatePlaces, sources: Tensor | None, dtype: torch.dtype) -> Tensor:
    num_rows = places.positions.shape[0]
    gains = [random(seed, 1, dtype)[0] for seed in (1, 2)]
    out = torch.full((num_rows, 2 * SIZE), float("nan"), dtype=dtype, device=DEVICE)
    states, tails = random(3, num_rows if sources is None else 9, dtype), random(4, NUM_BLOCKS * places.ring, dtype)
    merge(random(5, num_rows, dtype), states, tails, *gains, 1e-6, places, sources, out)
    return out


CASES: dict[str, tuple[Rows, bool, list[int] | None]] = {
    "singles and drafts, of sequences that share blocks": (
        [(1, 9), (0, 8), (0, 9), (2, 0), (3, 5), (3, 6), (3, 7), (-1, 0), (-1, 0)], False, None,
    ),
    "chunks": ([(0, 8), (0, 9), (0, 10), (2, 0), (2, 1), (3, 3), (3, 4), (3, 5), (3, 6), (3, 7)], True, None),
    "guesses": ([(0, 9), (3, 5), (2, 1), (-1, 0)], False, [4, -1, 8, -1]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_a_token_is_beside_the_state_before_it(case: str, dtype: torch.dtype) -> None:
    rows, are_chunks, source_rows = CASES[case]
    places = places_of(rows, are_chunks=are_chunks)
    sources = None if source_rows is None else ints(source_rows)
    actual, expected = (run(merge, places, sources, dtype) for merge in (merge_inputs, reference.merge_inputs))
    assert not expected.isnan().any()
    assert (actual.double() - expected.double()).norm() < TOLERANCES[dtype] * expected.double().norm()
    for row, (sequence, position) in enumerate(rows):
        if sequence >= 0 and position == 0:
            assert not actual[row, SIZE:].any(), "there is none before the first token"


@pytest.mark.parametrize("case", ["singles and drafts, of sequences that share blocks", "chunks"])
def test_states_are_kept_where_later_rows_look_for_them(case: str) -> None:
    rows, are_chunks, _ = CASES[case]
    places, states = places_of(rows, are_chunks=are_chunks), random(6, len(rows), torch.float32)
    tails = HiddenTails(NUM_BLOCKS, BLOCK_SIZE, 1, SIZE, torch.float32, DEVICE)
    expected = tails.states.clone()
    keep_states(states, tails.states, places)
    reference.keep_states(states, expected, places)
    assert torch.equal(tails.states, expected)
    for sequence in {sequence for sequence, _ in rows if sequence >= 0}:
        positions = [position for number, position in rows if number == sequence]
        begin, end = min(positions), max(positions) + 1
        for position in tails.last_positions(begin, end) if are_chunks else positions:
            kept = tails.states[tails.place(TABLES[sequence], position)]
            assert torch.equal(kept, states[rows.index((sequence, position))])
