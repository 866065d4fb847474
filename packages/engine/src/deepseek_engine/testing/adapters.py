"""Random LoRA adapters in PEFT's format for tiny checkpoints, written without PEFT."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - typed in part

from deepseek_engine.testing.checkpoints import TinyModel, projection_shapes

ALL_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_tiny_adapter(
    folder: Path,
    model: TinyModel | Mapping[str, tuple[int, int]] | None = None,
    *,
    rank: int = 4,
    targets: Sequence[str] = ALL_PROJECTIONS,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write an adapter that changes what the tiny model says and return its folder.

    Args:
        folder: made if it is not there.
        model: the shape that it is for, or rows and columns of every projection by name; the default
            Llama if not given.
        rank: of every projection.
        targets: last parts of the names of the projections that it changes.
        seed: the same seed gives the same bytes.
        config: more fields of `adapter_config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(fields | config), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    shapes = model if isinstance(model, Mapping) else projection_shapes(model or TinyModel())
    for name, (rows, columns) in shapes.items():
        if name.rpartition(".")[2] in targets:
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / columns**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / (2 * rank**0.5)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
