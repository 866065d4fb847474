"""The CPU attention backend against the definition, on batches that mix decodes of all lengths and prefill chunks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine.kernels.reference.paged_attention import paged_attention
from deepseek_engine.kernels.torch_attention import attend
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step

BLOCK_SIZE = 4
NUM_BLOCKS = 400
TOLERANCE = 1e-5
"""float32, softmax over at most some hundred terms."""


@settings(max_examples=40, deadline=None)
@given(
    shares=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 12)), min_size=1, max_size=7),
    group=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 1000),
)
def test_attention_over_pages_equals_its_definition(shares: list[tuple[int, int]], group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_kv_heads, head_dim = 2, 8
    cache = tuple(torch.randn(NUM_BLOCKS * BLOCK_SIZE, num_kv_heads, head_dim, generator=generator) for _ in range(2))
    free_blocks = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    batch = []
    for index, (num_computed, num_new) in enumerate(shares):
        sequence = Sequence("r", index, [0] * (num_computed + num_new), SamplingParams(), sampling_seed=0)
        sequence.num_computed_tokens = num_computed
        sequence.block_table = [free_blocks.pop() for _ in range(-(-(num_computed + num_new) // BLOCK_SIZE))]
        batch.append(ScheduledSequence(sequence, num_new))

    inputs = prepare_step(batch, BLOCK_SIZE, torch.float32)
    num_tokens = sum(num_new for _, num_new in shares)
    q = torch.randn(num_tokens, num_kv_heads * group, head_dim, generator=generator)
    k = torch.randn(num_tokens, num_kv_heads, head_dim, generator=generator)
    v = torch.randn(num_tokens, num_kv_heads, head_dim, generator=generator)
    actual = attend(q, k, v, (cache[0], cache[1]), inputs.metadata)

    last_rows = inputs.rows_R.tolist()
    for scheduled, last_row in zip(batch, last_rows, strict=True):
        rows = slice(last_row - scheduled.num_new_tokens + 1, last_row + 1)
        sequence = scheduled.sequence
        expected = paged_attention(
            q[rows], cache[0], cache[1], sequence.block_table, BLOCK_SIZE, sequence.num_computed_tokens
        )
        assert (actual[rows].view_as(expected) - expected).abs().max() < TOLERANCE
