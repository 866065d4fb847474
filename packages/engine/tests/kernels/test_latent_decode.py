"""Decode attention over cached latents: against its definition, and against the torch path on the same cache."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.reference.latent_decode import latent_decode_attention as reference
from deepseek_engine.kernels.torch_attention import attend_latent
from deepseek_engine.kernels.triton.latent_decode import choose_config, decode_counters, latent_decode_attention
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
BLOCK_SIZE = 16
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative, of the whole result: float32 sums in another order; bfloat16 rounds weights and outputs (2^-9 each)."""

TINY = [(3, 32, 16), (16, 24, 8)]
REAL = [(16, 512, 64), (128, 512, 64), (24, 512, 64)]
CONTEXTS = [[0, 16, 129], [200]]
LONG_CONTEXTS = [[256], [8192], [1, 0, 63, 64, 65, 8192, 640, 17], [640] * 66, [900 + row for row in range(140)]]


def paged_case(context_lens: list[int], width: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A cache whose free slots hold NaN, block tables in random order with room to spare, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    room = max(1, max(-(-context // BLOCK_SIZE) for context in context_lens)) + 2
    blocks = torch.randperm(len(context_lens) * room, generator=generator, dtype=torch.int32).view(-1, room)
    cache = torch.full((blocks.numel() * BLOCK_SIZE, width), float("nan"), dtype=dtype)
    for row, context in enumerate(context_lens):
        tokens = torch.arange(context)
        slots = blocks[row, tokens // BLOCK_SIZE].long() * BLOCK_SIZE + tokens % BLOCK_SIZE
        cache[slots] = torch.randn(context, width, generator=generator).to(dtype)
    return cache.to(DEVICE), blocks.to(DEVICE), torch.tensor(context_lens, dtype=torch.int32, device=DEVICE)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("context_lens", LONG_CONTEXTS if IS_CUDA else CONTEXTS, ids=lambda lens: f"{len(lens)}rows")
@pytest.mark.parametrize(("num_heads", "value_dim", "rope_dim"), REAL if IS_CUDA else TINY)
def test_rows_attend_to_their_pages(
    num_heads: int, value_dim: int, rope_dim: int, context_lens: list[int], dtype: torch.dtype
) -> None:
    width = value_dim + rope_dim
    cache, tables, lengths = paged_case(context_lens, width, dtype, seed=num_heads)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(len(context_lens), num_heads, width, generator=generator).to(DEVICE, dtype)
    counters = decode_counters(DEVICE)

    expected = reference(q, cache, tables, lengths, BLOCK_SIZE, 0.1, value_dim)
    for _ in range(2):  # the second call finds the counters as the first one left them
        actual = latent_decode_attention(q, cache, tables, lengths, BLOCK_SIZE, 0.1, value_dim, counters)
        assert relative_error(actual, expected) < TOLERANCES[dtype]
        assert not counters.any()
    assert not actual[lengths == 0].any()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_first_token_may_be_left_out(dtype: torch.dtype) -> None:
    cache, tables, lengths = paged_case([2, 0, 129, 33], 48, dtype, seed=5)
    cache[tables[:, 0].long() * BLOCK_SIZE] = 100.0  # what nobody may see; it would win
    q = torch.randn(4, 3, 48, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    counters = decode_counters(DEVICE)
    expected = reference(q, cache, tables, lengths, BLOCK_SIZE, 0.1, 32, first_token=1)
    actual = latent_decode_attention(q, cache, tables, lengths, BLOCK_SIZE, 0.1, 32, counters, first_token=1)
    assert relative_error(actual, expected) < TOLERANCES[dtype]
    assert not actual[1].any()


@pytest.mark.skipif(not IS_CUDA, reason="programs that wait for each other need a GPU; its other way runs here")
def test_the_last_program_of_a_row_can_combine_alone() -> None:
    cache, tables, lengths = paged_case([700, 3], 576, torch.bfloat16, seed=0)
    q = torch.randn(2, 16, 576, dtype=torch.bfloat16, device=DEVICE)
    config = choose_config(2, 16, 512, 700, q.dtype, 132)
    alone = replace(config, meet=False)
    counters = decode_counters(DEVICE)
    actual = latent_decode_attention(q, cache, tables, lengths, BLOCK_SIZE, 0.1, 512, counters, alone)
    assert relative_error(actual, reference(q, cache, tables, lengths, BLOCK_SIZE, 0.1, 512)) < 1e-2
    assert not counters.any()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_decoding_equals_the_torch_path(dtype: torch.dtype) -> None:
    contexts, num_heads, value_dim, rope_dim = [5, 40, 17], 4, 32, 16
    generator = torch.Generator().manual_seed(3)
    batch: list[ScheduledSequence] = []
    blocks = itertools.count()
    for index, context in enumerate(contexts):
        sequence = Sequence("r", index, [0] * context, SamplingParams(), sampling_seed=0)
        sequence.num_computed_tokens = context - 1
        sequence.block_table = [next(blocks) for _ in range(-(-context // BLOCK_SIZE))]
        batch.append(ScheduledSequence(sequence, 1))
    metadata = prepare_step(batch, BLOCK_SIZE, dtype).metadata
    cache = torch.randn(next(blocks) * BLOCK_SIZE, value_dim + rope_dim, generator=generator).to(dtype)
    q = torch.randn(len(contexts), num_heads, value_dim + rope_dim, generator=generator).to(dtype)
    new = torch.randn(len(contexts), value_dim + rope_dim, generator=generator).to(dtype)

    expected = attend_latent(q, new, cache, metadata, 0.2, value_dim)  # writes the new latents, too

    order = sorted(range(len(contexts)), key=contexts.__getitem__)  # the torch path lays rows out by length
    tables = torch.zeros(len(contexts), 3, dtype=torch.int32)
    for row, index in enumerate(order):
        table = batch[index].sequence.block_table
        tables[row, : len(table)] = torch.tensor(table)
    lengths = torch.tensor(sorted(contexts), dtype=torch.int32)
    actual = latent_decode_attention(
        q.to(DEVICE), cache.to(DEVICE), tables.to(DEVICE), lengths.to(DEVICE), BLOCK_SIZE, 0.2, value_dim,
        decode_counters(DEVICE),
    )  # fmt: skip
    assert relative_error(actual.cpu(), expected) < TOLERANCES[dtype]


def test_a_cache_of_another_type_is_refused() -> None:
    cache, tables, lengths = paged_case([4], 48, torch.float32, seed=0)
    q = torch.zeros(1, 2, 48, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match="one type"):
        latent_decode_attention(q, cache, tables, lengths, BLOCK_SIZE, 1.0, 32, decode_counters(DEVICE))
