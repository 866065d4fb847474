"""Tokens' choices sorted by expert."""

import pytest
import torch

from deepseek_engine.kernels.reference import align_pairs as reference
from deepseek_engine.kernels.triton.align_pairs import align_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "block_size"),
    [(1, 1, 1, 16), (1, 2, 16, 16), (33, 2, 16, 32), (40, 8, 66, 16), (300, 2, 5, 128)],
)
def test_pairs_come_in_the_order_of_experts_in_blocks_of_one_expert_each(
    num_tokens: int, top_k: int, num_experts: int, block_size: int
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.rand(num_tokens, num_experts, generator=generator).argsort(1)[:, :top_k].int().contiguous().to(DEVICE)
    assert_same(ids, num_experts, block_size)


@pytest.mark.parametrize("num_pairs", [4096, 4100])
def test_many_pairs_are_counted_in_chunks_and_experts_may_have_none(num_pairs: int) -> None:
    generator = torch.Generator().manual_seed(num_pairs)
    ids = torch.randint(3, 6, (num_pairs, 1), dtype=torch.int32, generator=generator).to(DEVICE)
    assert_same(ids, 8, 64)


@pytest.mark.skipif(DEVICE == "cpu", reason="slow in the interpreter")
@pytest.mark.parametrize(("num_tokens", "top_k", "num_experts"), [(16384, 8, 256), (16384, 2, 16), (40000, 6, 66)])
def test_a_prompts_pairs_are_sorted(num_tokens: int, top_k: int, num_experts: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.rand(num_tokens, num_experts, generator=generator).argsort(1)[:, :top_k].int().contiguous().to(DEVICE)
    assert_same(ids, num_experts, 128)


def test_an_empty_batch_and_an_odd_block_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        align_pairs(torch.empty(0, 2, dtype=torch.int32), 4, 16)
    with pytest.raises(ValueError, match="block_size=48"):
        align_pairs(torch.zeros(1, 2, dtype=torch.int32), 4, 48)


def assert_same(ids: torch.Tensor, num_experts: int, block_size: int) -> None:
    aligned = align_pairs(ids, num_experts, block_size)
    pairs, block_experts = reference.align_pairs(ids, num_experts, block_size)
    assert aligned.num_blocks.item() == block_experts.numel() <= aligned.max_blocks
    torch.testing.assert_close(aligned.pairs[: pairs.numel()], pairs)
    torch.testing.assert_close(aligned.block_experts[: block_experts.numel()], block_experts)
