"""Attention over a paged cache, one query at a time, straight from the definition. The oracle of every backend.

D head_dim, G query heads a key/value head.
"""

import torch
from torch import Tensor


def paged_attention(
    queries: Tensor, keys: Tensor, values: Tensor, block_table: list[int], block_size: int, num_computed_tokens: int
) -> Tensor:
    """Causal attention of one sequence's new tokens over all its cached tokens, the new ones included.

    Args:
        queries: [new tokens, heads, D].
        keys: a layer's cache, [slots, kv heads, D]; the new tokens are already in it.
        values: like keys.
        block_table: the sequence's blocks, in order.
        block_size: tokens a block.
        num_computed_tokens: tokens cached before the new ones.

    Returns:
        [new tokens, heads, D], float32.
    """
    num_new, num_heads, head_dim = queries.shape
    group = num_heads // keys.shape[1]
    outputs = torch.empty(num_new, num_heads, head_dim)
    for row in range(num_new):
        context = num_computed_tokens + row + 1
        slots = [block_table[t // block_size] * block_size + t % block_size for t in range(context)]
        for head in range(num_heads):
            k = keys[slots, head // group].float()
            v = values[slots, head // group].float()
            weights = (k @ queries[row, head].float() / head_dim**0.5).softmax(dim=0)
            outputs[row, head] = weights @ v
    return outputs
