"""FP8 weights in blocks: e4m3 values and a scale for each block of rows and columns.

Source: DeepSeek-V3 (arXiv 2412.19437), section 3.3, and the files of its release (`weight_scale_inv`, which is what
values are multiplied by).

N rows (output channels), K columns (input channels).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_engine.quantization.encoded import Index


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Blocks:
    """float8_e4m3fn [..., N, K] with scales, float32 [..., ceil(N / rows), ceil(K / columns)].

    Attributes:
        values: the weight.
        scale: what each block is multiplied by.
        block: rows and columns of a block; the last ones may be smaller.
    """

    values: Tensor
    scale: Tensor
    block: tuple[int, int]

    @property
    def shape(self) -> torch.Size:
        """[..., N, K]."""
        return self.values.shape

    @property
    def num_bytes(self) -> int:
        """Of the values and their scales."""
        return self.values.nbytes + self.scale.nbytes

    def __getitem__(self, index: Index) -> "Fp8Blocks":
        """A part of it: entries of the outer dimensions, or rows from the beginning of a block on."""
        row_dim = self.values.dim() - 2
        of_scale = tuple(self._blocks_of(part) if at == row_dim else part for at, part in enumerate(index))
        return Fp8Blocks(self.values[index], self.scale[of_scale], self.block)

    def _blocks_of(self, rows: int | slice) -> slice:
        assert isinstance(rows, slice), "a single row is no matrix"
        start, stop, _ = rows.indices(self.shape[-2])
        assert start % self.block[0] == 0, "a part begins with a block"
        return slice(start // self.block[0], -(-stop // self.block[0]))

    def row_parts(self) -> Iterator[Tensor]:
        """float32 [rows, K], one row of blocks at a time."""
        num_rows, num_columns = self.shape[-2:]
        matrices, grids = self.values.view(-1, num_rows, num_columns), self.scale.view(-1, *self.scale.shape[-2:])
        for matrix, scale in zip(matrices, grids, strict=True):
            for rows, factors in zip(torch.split(matrix, self.block[0]), scale, strict=True):
                yield rows.float().mul_(factors.repeat_interleave(self.block[1])[:num_columns])


def grid_shape(shape: torch.Size, block: tuple[int, int]) -> list[int]:
    """The shape of the scales of a weight [..., N, K]."""
    *outer, num_rows, num_columns = shape
    return [*outer, -(-num_rows // block[0]), -(-num_columns // block[1])]


def read_scale(scale: Tensor, scale_fmt: str) -> Tensor | None:
    """Scales as float32; None if their type is none that scales are stored in.

    Args:
        scale: floats, or powers of two as their exponents alone (ue8m0): float8_e8m0fnu, or its bytes.
        scale_fmt: as the checkpoint's config says; bytes are exponents only under `ue8m0`.
    """
    if scale.dtype is torch.uint8 and scale_fmt == "ue8m0":
        scale = scale.view(torch.float8_e8m0fnu)
    is_known = scale.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)
    return scale.float() if is_known else None
