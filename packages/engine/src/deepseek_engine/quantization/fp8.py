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
        num_skipped: rows of the first block that are not part of this.
    """

    values: Tensor
    scale: Tensor
    block: tuple[int, int]
    num_skipped: int = 0

    @property
    def shape(self) -> torch.Size:
        """[..., N, K]."""
        return self.values.shape

    @property
    def num_bytes(self) -> int:
        """Of the values and their scales."""
        return self.values.nbytes + self.scale.nbytes

    def __getitem__(self, index: Index) -> "Fp8Blocks":
        """A part of it: entries of the outer dimensions, or ranges of rows."""
        outer, rows = index[: self.values.dim() - 2], index[self.values.dim() - 2 :]
        if not rows:
            return Fp8Blocks(self.values[index], self.scale[index], self.block, self.num_skipped)
        assert isinstance(rows[0], slice), "a single row is no matrix"
        start, stop, _ = rows[0].indices(self.shape[-2])
        start, stop = start + self.num_skipped, stop + self.num_skipped
        blocks = slice(start // self.block[0], -(-stop // self.block[0]))
        return Fp8Blocks(self.values[index], self.scale[*outer, blocks], self.block, start % self.block[0])

    def row_parts(self) -> Iterator[Tensor]:
        """float32 [rows, K], one row of blocks at a time."""
        num_rows, num_columns = self.shape[-2:]
        matrices, grids = self.values.view(-1, num_rows, num_columns), self.scale.view(-1, *self.scale.shape[-2:])
        ends = range(self.block[0] - self.num_skipped, num_rows, self.block[0])
        for matrix, scale in zip(matrices, grids, strict=True):
            for rows, factors in zip(torch.tensor_split(matrix, list(ends)), scale, strict=True):
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
