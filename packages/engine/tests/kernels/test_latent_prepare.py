"""Norm, rotations and the cache write before latent attention, and the projections around it."""

import pytest
import torch
from torch import Tensor

from deepseek_engine.kernels.reference import latent_prepare as prepare_reference
from deepseek_engine.kernels.reference import latent_projections as projections_reference
from deepseek_engine.kernels.triton.latent_prepare import latent_prepare
from deepseek_engine.kernels.triton.latent_projections import absorb_query, expand_values
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import RopeConfig

IS_CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_CUDA else "cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative, of the whole result: float32 sums in another order; a bfloat16 result is rounded once (2^-9)."""

SHAPES = (
    [(1, 16, 128, 512, 64), (300, 128, 128, 512, 64), (3, 5, 24, 96, 8)]
    if IS_CUDA
    else [(1, 3, 8, 24, 8), (4, 18, 8, 32, 4)]
)
"""T, N, D, C, R."""


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("num_tokens", "num_heads", "nope", "rank", "rope"), SHAPES)
def test_latents_are_cached_and_queries_rotated(
    num_tokens: int, num_heads: int, nope: int, rank: int, rope: int, interleaved: bool, dtype: torch.dtype
) -> None:
    projected = random(num_tokens, num_heads * (nope + rope) + rank + rope, dtype=dtype, seed=num_tokens)
    q, latent = projected.split([num_heads * (nope + rope), rank + rope], dim=1)
    q = q.view(num_tokens, num_heads, nope + rope)
    norm = random(rank, dtype=dtype, seed=1)
    cos_sin = rotary_table(RopeConfig(dim=rope, theta=1e4), 64, torch.float32, DEVICE)
    positions = torch.arange(num_tokens, device=DEVICE) % 60 + 3
    slots = torch.arange(num_tokens, device=DEVICE, dtype=torch.int32) * 2 + 1
    slots[-1] = -1 if num_tokens > 1 else 5
    caches = [torch.full((2 * num_tokens + 6, rank + rope), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)]
    queries = [torch.full((num_tokens, num_heads, rank + rope), float("nan"), dtype=dtype, device=DEVICE) for _ in "ab"]

    for prepare, cache, query in zip((latent_prepare, prepare_reference.latent_prepare), caches, queries, strict=True):
        rotated = query[..., rank:]
        prepare(q, latent, norm, 1e-6, positions, slots, cos_sin, cache, rotated, interleaved=interleaved)

    written = slots[slots >= 0].long()
    assert relative_error(caches[0][written], caches[1][written]) < TOLERANCES[dtype]
    assert torch.equal(caches[0].isnan(), caches[1].isnan()), "only the tokens' own slots are written"
    assert relative_error(queries[0][..., rank:], queries[1][..., rank:]) < TOLERANCES[dtype]
    assert queries[0][..., :rank].isnan().all()

    latent_prepare(q, latent, norm, 1e-6, positions, slots, cos_sin, caches[0], q[..., nope:], interleaved=interleaved)
    assert torch.equal(q[..., nope:], queries[0][..., rank:]), "in place, the same"
    alone, none = torch.full_like(caches[0], float("nan")), q[:, :0]
    latent_prepare(
        none, latent, norm, 1e-6, positions, slots, cos_sin, alone, none[..., nope:], interleaved=interleaved
    )
    assert torch.equal(alone[written], caches[0][written]), "nobody asks, the same is cached"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 300] if IS_CUDA else [1, 3, 5])
@pytest.mark.parametrize(("num_heads", "nope", "rank", "v_dim"), [(16, 128, 512, 128), (3, 24, 40, 12)])
def test_a_head_has_its_own_matrices(
    num_heads: int, nope: int, rank: int, v_dim: int, num_tokens: int, dtype: torch.dtype
) -> None:
    if not IS_CUDA and rank > 40:
        num_heads = 1
    kv_b = random(num_heads, nope + v_dim, rank, dtype=dtype, seed=0)
    key_b, value_b = kv_b[:, :nope], kv_b[:, nope:]
    q = random(num_tokens, num_heads, nope + 8, dtype=dtype, seed=1)[..., :nope]
    actual, expected = (
        torch.full((num_tokens, num_heads, rank + 8), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)
    )
    absorb_query(q, key_b, actual[..., :rank])
    projections_reference.absorb_query(q, key_b, expected[..., :rank])
    assert relative_error(actual[..., :rank], expected[..., :rank]) < TOLERANCES[dtype]
    assert actual[..., rank:].isnan().all()

    attended = random(num_tokens, num_heads, rank, dtype=dtype, seed=2)
    expanded = expand_values(attended, value_b)
    assert expanded.shape == (num_tokens, num_heads * v_dim)
    assert relative_error(expanded, projections_reference.expand_values(attended, value_b)) < TOLERANCES[dtype]
