"""The paged attention of the CPU kernels against the definition."""

import pytest
import torch

from deepseek_engine.kernels.cpu.attention import PagedBatch, attend
from deepseek_engine.kernels.cpu.library import load

library = load()
pytestmark = [
    pytest.mark.skipif(library is None, reason="this machine's processor or build has no CPU kernels"),
    pytest.mark.usefixtures("either_unit"),
]

BLOCK_SIZE = 16


class Sequences:
    """Random queries, keys and values of some sequences, and a cache whose pages are shuffled and hold NaN."""

    def __init__(self, lengths: list[int], *, heads: int, kv_heads: int, dim: int, block_size: int = BLOCK_SIZE):
        torch.manual_seed(sum(lengths) + heads)
        self.heads, self.kv_heads, self.dim, self.lengths, self.block_size = heads, kv_heads, dim, lengths, block_size
        self.qkv = [torch.randn(n, heads + 2 * kv_heads, dim).bfloat16() for n in lengths]
        blocks = [-(-n // block_size) for n in lengths]
        order = torch.randperm(sum(blocks)).split(blocks)
        self.tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
        for row, table in enumerate(order):
            self.tables[row, : len(table)] = table
        slots = sum(blocks) * block_size
        self.cache = tuple(torch.full((slots, kv_heads, dim), float("nan")).bfloat16() for _ in range(2))

    def attend(self, ranges: list[tuple[int, int, int]], prefix_lens: list[int] | None = None) -> list[torch.Tensor]:
        """One step: for each (sequence, begin, end) its tokens begin..end-1."""
        parts = [self.qkv[s][begin:end] for s, begin, end in ranges]
        first_rows = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0).to(torch.int32)
        batch = PagedBatch(
            first_rows=first_rows,
            context_lens=torch.tensor([end for _, _, end in ranges], dtype=torch.int32),
            block_tables=self.tables[[s for s, _, _ in ranges]].contiguous(),
            block_size=self.block_size,
            prefix_lens=None if prefix_lens is None else torch.tensor(prefix_lens, dtype=torch.int32),
        )
        assert library is not None
        out = attend(library, torch.cat(parts).clone(), self.cache, batch, num_heads=self.heads)
        return list(out.split([len(p) for p in parts]))

    def expected(self, sequence: int, prefix_len: int = 0) -> torch.Tensor:
        """Straight from the definition, in float32."""
        q, k, v = self.qkv[sequence].float().split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / self.dim**0.5
        positions = torch.arange(len(q))
        visible = (positions[None] <= positions[:, None]) | (
            torch.maximum(*torch.meshgrid(positions, positions, indexing="ij")) < prefix_len
        )
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (8, 1, 128), (14, 2, 48), (6, 6, 96)])
@pytest.mark.parametrize("block_size", [16, 64])
def test_prefill_equals_the_definition(heads, kv_heads, dim, block_size):
    sequences = Sequences([1, 17, 70, 33], heads=heads, kv_heads=kv_heads, dim=dim, block_size=block_size)
    outputs = sequences.attend([(s, 0, n) for s, n in enumerate(sequences.lengths)])
    for sequence, output in enumerate(outputs):
        # Inputs are bfloat16 and so are the weights and the result: 2^-8 relative each.
        torch.testing.assert_close(output.float(), sequences.expected(sequence), atol=0.03, rtol=0.02)


def test_a_sequence_gives_the_same_bits_however_it_is_cut_and_whoever_is_beside_it():
    whole = Sequences([90, 40], heads=9, kv_heads=3, dim=64)
    expected = whole.attend([(0, 0, 90)])[0]
    pieces = Sequences([90, 40], heads=9, kv_heads=3, dim=64)
    got = [pieces.attend([(1, 0, 25), (0, 0, 7)])[1], pieces.attend([(0, 7, 50)])[0]]
    got += [pieces.attend([(0, t, t + 1), (1, t - 25, t - 24)])[0] for t in range(50, 60)]
    got += [pieces.attend([(1, 35, 40), (0, 60, 90)])[1]]
    assert torch.equal(torch.cat(got), expected)


def test_tokens_of_the_prefix_see_each_other_in_both_directions():
    sequences = Sequences([50, 20], heads=4, kv_heads=2, dim=32)
    first, second = sequences.attend([(0, 0, 40), (1, 0, 20)], prefix_lens=[30, 0])
    rest = sequences.attend([(0, 40, 50)], prefix_lens=[30])[0]
    expected = sequences.expected(0, prefix_len=30)
    torch.testing.assert_close(torch.cat((first, rest)).float(), expected, atol=0.03, rtol=0.02)
    torch.testing.assert_close(second.float(), sequences.expected(1), atol=0.03, rtol=0.02)
