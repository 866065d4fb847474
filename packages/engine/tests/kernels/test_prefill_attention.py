"""Attention of prompt chunks against its twin: chunks, cached beginnings, prefixes, groups, dtypes, INT8 caches."""

from itertools import accumulate

import pytest
import torch

from deepseek_engine.kernels.reference import prefill_attention as reference
from deepseek_engine.kernels.triton.prefill_attention import PrefillConfig, prefill_attention
from deepseek_engine.testing.paged_attention import DEVICE, IS_GPU, TOLERANCES, Draw, Heads, error_of

# New tokens and the context with them: a whole prompt, one chunk of many, drafts, one token, an absent sequence.
CHUNKS = (
    [(1000, 1000), (300, 1817), (5, 640), (1, 33), (0, 0), (128, 128)]
    if IS_GPU
    else [(20, 20), (9, 25), (1, 17), (0, 0)]
)
PREFIXES = [1000, 1600, 0, 33, 0, 77] if IS_GPU else [18, 22, 0, 0]
SEED_HEADS = Heads(16, 8, 128) if IS_GPU else Heads(2, 1, 32)
SMALL = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=2)


@pytest.mark.parametrize(
    ("heads", "dtype", "block_size", "is_int8"),
    [
        (SEED_HEADS, torch.bfloat16, 16, False),
        (SEED_HEADS, torch.bfloat16, 256, False),
        (SEED_HEADS, torch.bfloat16, 16, True),
        (SEED_HEADS, torch.float32, 16, False),
        (Heads(9, 3, 64) if IS_GPU else Heads(3, 1, 16), torch.float16, 16, False),
        (Heads(6, 2, 80) if IS_GPU else Heads(3, 1, 24), torch.float32, 64, True),
    ],
)
@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["causal", "prefix"])
def test_chunks_attend_to_what_they_may_see(
    heads: Heads, dtype: torch.dtype, block_size: int, is_int8: bool, prefixes: list[int] | None
) -> None:
    draw = Draw(21, heads, dtype)
    kv, tables = draw.paged([context for _, context in CHUNKS], block_size, is_int8=is_int8)
    begins = [0, *accumulate(new for new, _ in CHUNKS)]
    queries = draw.normal(begins[-1] + 3, heads.queries, heads.dim)  # and three rows of padding
    cu_seqlens, contexts = (
        torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in (begins, [context for _, context in CHUNKS])
    )
    prefix_lens = None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32, device=DEVICE)
    scale, longest = heads.dim**-0.5, max(new for new, _ in CHUNKS)
    expected = reference.prefill_attention(queries, kv, tables, cu_seqlens, contexts, prefix_lens, scale=scale)
    for config in (None, SMALL) if IS_GPU else (SMALL,):
        actual = prefill_attention(
            queries, kv, tables, cu_seqlens, contexts, prefix_lens, max_seqlen_q=longest, scale=scale, config=config
        )
        assert error_of(actual[: begins[-1]], expected[: begins[-1]]) < TOLERANCES[dtype]
