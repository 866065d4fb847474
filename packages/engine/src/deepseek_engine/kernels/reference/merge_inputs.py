"""`kernels/triton/merge_inputs.py` row by row, straight from the definition."""

import torch
from torch import Tensor

from deepseek_engine.kernels.triton.merge_inputs import StatePlaces


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
    """See the kernel."""
    size = places.block_size
    for row in range(embedding_TH.shape[0]):
        position, before = int(places.positions[row]), torch.zeros_like(states[0])
        if sources is not None and sources[row] >= 0:
            before = states[int(sources[row])]
        elif position > 0:
            block, offset = int(_table(places, row)[(position - 1) // size]), (position - 1) % size
            is_above = sources is None and row > 0 and int(places.slots[row - 1]) == block * size + offset
            before = states[row - 1] if is_above else tails[block * places.ring + offset % places.ring]
        normed = (_norm(embedding_TH[row], embedding_gain, eps), _norm(before, state_gain, eps))
        out[row] = torch.cat(normed).to(out.dtype)


def keep_states(states_TH: Tensor, tails: Tensor, places: StatePlaces) -> None:
    """See the kernel."""
    size, last = places.block_size, states_TH.shape[0] - 1
    for row in range(states_TH.shape[0]):
        block, offset = divmod(int(places.slots[row]), size)
        goes_on = places.table_rows is not None and row < last and places.table_rows[row + 1] == places.table_rows[row]
        if block >= 0 and (offset == size - 1 or not goes_on):
            tails[block * places.ring + offset % places.ring] = states_TH[row]


def _table(places: StatePlaces, row: int) -> Tensor:
    return places.block_tables[row if places.table_rows is None else int(places.table_rows[row])]


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean() + eps) * gain.double()
