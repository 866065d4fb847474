"""Attention of prefill chunks over cached latents, in every form that the plan chooses, against its definition."""

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.latent_prefill_plan import LatentChunks, absorbed_limit, plan_latent_prefill
from deepseek_engine.kernels.reference.latent_prefill import latent_prefill_attention as reference
from deepseek_engine.kernels.triton.latent_decode import decode_counters
from deepseek_engine.kernels.triton.latent_prefill import latent_prefill_attention
from deepseek_engine.model_config import LatentConfig

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
BLOCK_SIZE = 16
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative, of the whole result: float32 sums in another order; bfloat16 rounds keys, values, weights (2^-9 each)."""

SMALL = LatentConfig(
    num_attention_heads=2, q_lora_rank=None, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12,
    softmax_scale=0.2,
)  # fmt: skip
LITE = LatentConfig(
    num_attention_heads=16, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
    v_head_dim=128, softmax_scale=0.1,
)  # fmt: skip
CONFIG = LITE if IS_CUDA else SMALL

FRESH = [(33, 33), (1, 1), (50, 50)]
"""New tokens and context of each chunk."""
MIXED = [(40, 40), (2, 41), (30, 70), (2, 2)]
LARGE = [(4096, 4096), (1, 8000), (1000, 3000), (17, 500), (513, 513)]


def case(
    chunks: list[tuple[int, int]], prefix_lens: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, LatentChunks]:
    """Queries, a cache whose free slots hold NaN, kv_b, and the chunks on pages in random order."""
    generator = torch.Generator().manual_seed(len(chunks))
    config, num_tokens = CONFIG, sum(new for new, _ in chunks)
    room = max(-(-context // BLOCK_SIZE) for _, context in chunks)
    blocks = torch.randperm(len(chunks) * room, generator=generator, dtype=torch.int32).view(-1, room)
    cache = torch.full((blocks.numel() * BLOCK_SIZE, config.latent_dim), float("nan"))
    for row, (_, context) in enumerate(chunks):
        tokens = torch.arange(context)
        slots = blocks[row, tokens // BLOCK_SIZE].long() * BLOCK_SIZE + tokens % BLOCK_SIZE
        cache[slots] = torch.randn(context, config.latent_dim, generator=generator)
    heads = config.num_attention_heads
    q = torch.randn(num_tokens, heads, config.qk_head_dim, generator=generator)
    width = config.qk_nope_head_dim + config.v_head_dim
    kv_b = torch.randn(heads * width, config.kv_lora_rank, generator=generator) / config.kv_lora_rank**0.5
    first_rows = [sum(new for new, _ in chunks[:index]) for index in range(len(chunks) + 1)]
    of_chunks = LatentChunks(first_rows, [context for _, context in chunks], prefix_lens, blocks.to(DEVICE), BLOCK_SIZE)
    q, cache, kv_b = (x.to(DEVICE, dtype) for x in (q, cache, kv_b))
    return q, cache, kv_b, of_chunks


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("chunks", "prefix_lens", "workspace_keys"),
    [
        pytest.param(FRESH, [], 1000, id="fresh"),
        pytest.param(FRESH, [20, 0, 49], 1000, id="prefix"),
        pytest.param(MIXED, [], 100_000, id="behind cached tokens"),
        pytest.param(MIXED, [0, 40, 60, 2], 47, id="pass by pass"),
        *(
            [pytest.param(LARGE, [], 100_000, id="large"), pytest.param(LARGE, [], 1500, id="many passes")]
            if IS_CUDA
            else []
        ),
    ],
)
def test_chunks_attend_to_their_sequences(
    chunks: list[tuple[int, int]], prefix_lens: list[int], workspace_keys: int, dtype: torch.dtype
) -> None:
    q, cache, kv_b, of_chunks = case(chunks, prefix_lens, dtype)
    key_bytes = CONFIG.num_attention_heads * (CONFIG.qk_nope_head_dim + CONFIG.v_head_dim) * dtype.itemsize
    plan = plan_latent_prefill(of_chunks, CONFIG, dtype, workspace_keys * key_bytes)
    counters = decode_counters(DEVICE)

    actual = latent_prefill_attention(q, cache, kv_b, plan, CONFIG, counters)

    assert relative_error(actual, reference(q, cache, kv_b, plan, CONFIG)) < TOLERANCES[dtype]
    assert not counters.any()


def test_few_tokens_behind_a_long_context_are_not_worth_expanding_it() -> None:
    tables = torch.zeros(4, 600, dtype=torch.int32)
    limit = absorbed_limit(LITE, 2)
    chunks = LatentChunks([0, 1, 1 + limit, 2 + 2 * limit, 3 + 2 * limit], [9000, 300, 300, 1], [], tables, BLOCK_SIZE)
    plan = plan_latent_prefill(chunks, LITE, torch.bfloat16)

    assert 16 < limit < 128
    assert plan.absorbed is not None
    assert len(plan.absorbed.context_lens) == 1 + limit
    assert [expanded.table[:, :2].tolist() for expanded in plan.passes] == [
        [[1 + limit, limit + 1], [2 + 2 * limit, 1]]
    ], "a fresh prompt is expanded, however short"


def test_rows_that_all_attend_absorbed_need_no_expansion() -> None:
    q, cache, kv_b, of_chunks = case([(2, 40), (1, 20)], [], torch.float32)
    plan = plan_latent_prefill(of_chunks, CONFIG, torch.float32)
    assert not plan.passes
    actual = latent_prefill_attention(q, cache, kv_b, plan, CONFIG, decode_counters(DEVICE))
    assert relative_error(actual, reference(q, cache, kv_b, plan, CONFIG)) < 1e-5


def test_a_context_beyond_its_block_table_is_refused() -> None:
    chunks = LatentChunks([0, 4], [40], [], torch.zeros(1, 2, dtype=torch.int32), BLOCK_SIZE)
    with pytest.raises(ValueError, match=r"context_lens\[0\]=40 has to be between its 4 new tokens and the 32 tokens"):
        plan_latent_prefill(chunks, SMALL, torch.float32)
