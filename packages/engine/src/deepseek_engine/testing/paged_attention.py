"""Random paged caches for the attention kernels' tests."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepseek_engine.kernels.paged_kv import HeadNorms, PagedKV
from deepseek_engine.layers.rotary import rotary_table
from deepseek_engine.model_config import RopeConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_GPU = DEVICE.type == "cuda"

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of ||out - reference|| / ||reference||: float32 sums in another order; operands of 8 or 11 bits, sums in float32."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of a model's attention."""

    queries: int
    keys: int
    dim: int


class Draw:
    """Draws inputs from one seed."""

    def __init__(self, seed: int, heads: Heads, dtype: torch.dtype) -> None:
        self.heads, self.dtype = heads, dtype
        self._generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Of the activations' dtype."""
        return torch.randn(*shape, generator=self._generator, device=DEVICE, dtype=torch.float32).to(self.dtype)

    def qkv(self, num_tokens: int) -> Tensor:
        """Rows of the fused projection, apart by more than their length."""
        width = (self.heads.queries + 2 * self.heads.keys) * self.heads.dim
        return self.normal(num_tokens, width + 8)[:, :width]

    def norms(self) -> HeadNorms:
        """Weights around 1."""
        query, key = 1 + self.normal(2, self.heads.dim) / 4
        return HeadNorms(query, key, 1e-6)

    def table(self, num_positions: int) -> Tensor:
        """Of rotary angles."""
        config = RopeConfig(dim=self.heads.dim, theta=1e4, scaling=None)
        return rotary_table(config, num_positions, torch.float32, DEVICE)

    def paged(self, context_lens: list[int], block_size: int, *, is_int8: bool) -> tuple[PagedKV, Tensor]:
        """A cache that holds the sequences in shuffled blocks, NaN where there is nothing, and their block tables."""
        needed = [-(-context // block_size) for context in context_lens]
        num_blocks = sum(needed) + 2
        blocks = cast("list[int]", torch.randperm(num_blocks, generator=self._generator, device=DEVICE).tolist())
        tables = torch.full((len(needed), max(*needed, 1) + 1), -(2**31), dtype=torch.int32, device=DEVICE)
        shape = (num_blocks * block_size, self.heads.keys, self.heads.dim)
        filled = torch.zeros(shape[0], dtype=torch.bool, device=DEVICE)
        for row, count in enumerate(needed):
            tables[row, :count] = torch.tensor([blocks.pop() for _ in range(count)], dtype=torch.int32, device=DEVICE)
            tokens = torch.arange(context_lens[row], device=DEVICE)
            filled[tables[row].long()[tokens // block_size] * block_size + tokens % block_size] = True
        if not is_int8:
            keys, values = self.normal(*shape), self.normal(*shape)
            keys[~filled] = values[~filled] = float("nan")
            return PagedKV(keys, values, block_size), tables
        keys, values = (
            torch.randint(-127, 128, shape, generator=self._generator, device=DEVICE, dtype=torch.int8)
            for _ in range(2)
        )
        key_scales, value_scales = (self.normal(*shape[:2]).float().abs() / 64 + 0.01 for _ in range(2))
        key_scales[~filled] = value_scales[~filled] = float("nan")
        return PagedKV(keys, values, block_size, key_scales, value_scales), tables


def copy_of(kv: PagedKV) -> PagedKV:
    """One cache for the kernel, one for its twin."""
    scales = (None if s is None else s.clone() for s in (kv.key_scales, kv.value_scales))
    return PagedKV(kv.keys.clone(), kv.values.clone(), kv.block_size, *scales)


def error_of(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||; NaN where either has one."""
    size = cast("float", expected.double().norm().item())
    return cast("float", (actual.double() - expected.double()).norm().item()) / size


def assert_same_cache(actual: PagedKV, expected: PagedKV, dtype: torch.dtype) -> None:
    """Equal up to the last bit of activations of `dtype`, and untouched elsewhere (NaN stays NaN)."""
    is_exact = dtype == torch.float32
    pairs = [(actual.keys, expected.keys), (actual.values, expected.values)]
    if expected.key_scales is not None and expected.value_scales is not None:
        assert actual.key_scales is not None
        assert actual.value_scales is not None
        pairs += [(actual.key_scales, expected.key_scales), (actual.value_scales, expected.value_scales)]
    for got, wanted in pairs:
        if wanted.dtype == torch.int8:  # a tie may be rounded to either side
            assert (got.int() - wanted.int()).abs().max() <= (1 if is_exact else 2)
        else:
            rtol, atol = (1e-5, 1e-5) if is_exact else (1e-2, 1e-3)
            torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
