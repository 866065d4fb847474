"""Checkpoints rewritten with quantised weights, as others' tools write them. For tests only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType] - typed in part
from torch import Tensor

FP8_MAX: Final = 448.0
FP8: Final = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
INT8: Final[dict[str, Any]] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "global_compression_ratio": 1.27,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "output_activations": None,
            "weights": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False,
                "group_size": None, "block_structure": None, "actorder": None, "observer": "minmax",
                "observer_kwargs": {},
            },
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
                "group_size": None, "block_structure": None, "actorder": None, "observer": "memoryless",
                "observer_kwargs": {},
            },
        }
    },
}  # fmt: skip
"""As llm-compressor writes it for the scheme W8A8."""


def is_projection(name: str, tensor: Tensor) -> bool:
    """Whether released checkpoints quantise a tensor: projections and experts, but no router, embedding or head."""
    kept = ("embed_tokens.", "lm_head.", ".gate.", ".router.", "weights_proj.")
    return tensor.dim() >= 2 and not any(part in f"{name}." for part in kept)


def to_fp8_blocks(weight: Tensor, block: tuple[int, int], *, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """A matrix [N, K] as float8_e4m3fn, and the scale of each block, float32; with `ue8m0` powers of two."""
    grid = torch.empty(-(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1]))
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            rows = slice(row * block[0], (row + 1) * block[0])
            columns = slice(column * block[1], (column + 1) * block[1])
            scale = weight[rows, columns].abs().max() / FP8_MAX
            grid[row, column] = scale.log2().ceil().exp2() if ue8m0 else scale
            values[rows, columns] = (weight[rows, columns] / grid[row, column]).to(torch.float8_e4m3fn)
    return values, grid


def fp8_tensors(
    tensors: dict[str, Tensor],
    block: tuple[int, int],
    store_scale: Callable[[Tensor], Tensor] = lambda scale: scale,
    *,
    ue8m0: bool = False,
) -> dict[str, Tensor]:
    """A checkpoint's tensors with its projections in FP8, in a file's form.

    Args:
        tensors: all of them; of those with three dimensions, each matrix is cut into blocks by itself.
        block: rows and columns.
        store_scale: gives the float32 scales the type that they have in the file.
        ue8m0: whether scales are powers of two.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_projection(name, tensor):
            found[name] = tensor
            continue
        matrices = [to_fp8_blocks(matrix, block, ue8m0=ue8m0) for matrix in tensor.view(-1, *tensor.shape[-2:])]
        values, scales = (torch.stack(part) for part in zip(*matrices, strict=True))
        found[name] = values.view(tensor.shape)
        found[f"{name}_scale_inv"] = store_scale(scales.view(*tensor.shape[:-2], *scales.shape[1:]))
    return found


def from_fp8_blocks(values: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """The matrix that FP8 blocks stand for, float32, written out the slow and plain way."""
    grown = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return values.float() * grown[: values.shape[0], : values.shape[1]]


def rewrite(
    folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], quantization: dict[str, Any] | None
) -> None:
    """Replace the tensors of a folder with one file by what `change` makes of them, and the quantization_config."""
    path, config = folder / "model.safetensors", folder / "config.json"
    save_file(change(dict(load_file(path))), path, metadata={"format": "pt"})
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields.pop("quantization_config", None)
    if quantization is not None:
        fields["quantization_config"] = quantization
    config.write_text(json.dumps(fields, indent=2), encoding="utf-8")
