"""Pairs of tokens and experts sorted by expert, straight from the definition. See kernels/triton/align_pairs.py."""

from typing import cast

import torch
from torch import Tensor


def align_pairs(expert_ids_TK: Tensor, num_experts: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Sort pairs by expert, each expert's filled up to whole blocks with T * K.

    Returns:
        the pairs, int32 [blocks * block_size], and each block's expert, int32 [blocks].
    """
    expert_of_pair = cast("list[int]", expert_ids_TK.flatten().tolist())
    pairs: list[int] = []
    block_experts: list[int] = []
    for expert in range(num_experts):
        mine = [pair for pair, chosen in enumerate(expert_of_pair) if chosen == expert]
        mine += [len(expert_of_pair)] * (-len(mine) % block_size)
        pairs += mine
        block_experts += [expert] * (len(mine) // block_size)
    device = expert_ids_TK.device
    return (
        torch.tensor(pairs, dtype=torch.int32, device=device),
        torch.tensor(block_experts, dtype=torch.int32, device=device),
    )
