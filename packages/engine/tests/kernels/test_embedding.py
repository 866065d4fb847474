import pytest
import torch

from deepseek_engine.kernels.reference.embedding import embed as expected_embed
from deepseek_engine.kernels.triton.embedding import embed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("num_sources", [None, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_embedded_whether_the_host_knows_them_or_not(num_sources: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(50, 36, generator=generator).to(DEVICE, dtype)
    ids = torch.randint(50, (5,), generator=generator, dtype=torch.int32).to(DEVICE)
    sampled = torch.randint(50, (7,), generator=generator).to(DEVICE)
    sources = None
    if num_sources is not None:
        sources = torch.tensor([6, -1, 0, -1, 2], dtype=torch.int32, device=DEVICE)[:num_sources]
    assert torch.equal(embed(ids, sources, sampled, table), expected_embed(ids, sources, sampled, table))
