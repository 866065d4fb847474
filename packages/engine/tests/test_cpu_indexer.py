"""The kernels' choice of keys for sparse attention against its definition."""

import ctypes

import pytest
import torch
import torch.nn.functional as F

from deepseek_engine.kernels.cpu.attention import PagedBatch
from deepseek_engine.kernels.cpu.library import Indexer, IndexerShape, Norm, load

library = load()
pytestmark = pytest.mark.skipif(library is None, reason="this machine's processor or build has no CPU kernels")

EPS = 1e-6


class Tokens:
    """Queries, keys and weights of one sequence whose pages are out of order; nothing is turned by its position."""

    def __init__(self, num_tokens: int, *, heads: int, dim: int, top_k: int) -> None:
        torch.manual_seed(heads)
        self.top_k = top_k
        self.q, self.k = torch.randn(num_tokens, heads, dim).bfloat16(), torch.randn(num_tokens, dim).bfloat16()
        self.weights = torch.randn(num_tokens, heads)
        self.cache = torch.full((num_tokens // 16 * 16 + 16, dim), float("nan")).bfloat16()
        self.table = torch.randperm(len(self.cache) // 16).to(torch.int32)[None]

    def choose(self, begin: int, end: int) -> list[list[int]]:
        """One step with the tokens begin..end-1: the positions that each of them sees."""
        assert library is not None
        num_rows, heads, dim = end - begin, *self.q.shape[1:]
        lengths = torch.tensor([0, num_rows, end], dtype=torch.int32)
        batch = PagedBatch(lengths[:2], lengths[2:], self.table, 16).structure()
        q, k, weights = self.q[begin:end].clone(), self.k[begin:end].clone(), self.weights[begin:end].contiguous()
        norm, cos_sin = torch.stack((torch.ones(dim), torch.zeros(dim))).bfloat16(), torch.ones(end, 2, 2)
        cos_sin[:, 1] = 0.0
        positions, counts = torch.empty(num_rows, self.top_k, dtype=torch.int32), torch.empty(num_rows).to(torch.int32)
        library.indexer_choose(
            Indexer(
                shape=ctypes.pointer(IndexerShape(heads, dim, 4, self.top_k)),
                batch=ctypes.pointer(batch),
                num_rows=num_rows,
                queries=q.data_ptr(),
                keys=k.data_ptr(),
                weights=weights.data_ptr(),
                key_norm=ctypes.pointer(Norm(norm[0].data_ptr(), norm[1].data_ptr(), EPS)),
                cos_sin=cos_sin.data_ptr(),
                cache=self.cache.data_ptr(),
                positions=positions.data_ptr(),
                counts=counts.data_ptr(),
                top_k=self.top_k,
            )
        )
        return [row[:count].tolist() for row, count in zip(positions, counts.tolist(), strict=True)]

    def scores(self) -> torch.Tensor:
        """[queries, keys], from the definition."""
        heads, dim = self.q.shape[1:]
        keys = F.layer_norm(self.k.float(), (dim,), eps=EPS).bfloat16().float()
        per_head = torch.einsum("qhd,kd->qhk", self.q.float(), keys).relu()
        return torch.einsum("qh,qhk->qk", self.weights, per_head) * (heads * dim) ** -0.5


@pytest.mark.parametrize(("heads", "dim", "top_k"), [(1, 8, 5), (13, 34, 21), (16, 128, 64), (64, 32, 1)])
def test_each_token_sees_its_best_keys(heads: int, dim: int, top_k: int) -> None:
    tokens = Tokens(150, heads=heads, dim=dim, top_k=top_k)
    chosen, scores = tokens.choose(0, 150), tokens.scores()
    for position, seen in enumerate(chosen):
        assert seen == sorted(set(seen))
        assert len(seen) == min(position + 1, top_k)
        others = sorted(set(range(position + 1)) - set(seen))
        if others:
            # Two scores may be nearer than the order of addition tells apart.
            assert scores[position, seen].min() > scores[position, others].max() - 1e-4


def test_the_choice_is_the_same_however_the_tokens_were_cut_into_steps() -> None:
    whole = Tokens(150, heads=16, dim=64, top_k=40).choose(0, 150)
    cut = Tokens(150, heads=16, dim=64, top_k=40)
    steps = ((0, 1), (1, 77), (77, 78), (78, 150))
    assert [seen for step in steps for seen in cut.choose(*step)] == whole


def test_of_equal_scores_the_earlier_key_is_chosen() -> None:
    tokens = Tokens(90, heads=4, dim=32, top_k=10)
    tokens.weights.zero_()
    assert tokens.choose(0, 90)[-1] == list(range(10))
