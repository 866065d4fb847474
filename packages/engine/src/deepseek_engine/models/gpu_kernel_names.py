"""What the log and /metrics say of a GPU decoder: which kernels serve which part of a step."""

from collections.abc import Sequence

import torch

from deepseek_engine.models.gpu_weights import ExpertWeights, GpuLayer, LatentWeights, Matrix


def kernel_names(
    layers: Sequence[GpuLayer],
    head: Matrix,
    dtype: torch.dtype,
    block_size: int,
    *,
    flash: str | None,
    dense_library: str | None,
    has_whole_prompts: bool,
    is_fused: bool,
) -> dict[str, str]:
    """Names by part of a step.

    Args:
        layers: of the model.
        head: of the model.
        dtype: of activations.
        block_size: tokens of a page.
        flash: the library that attends instead of our kernels.
        dense_library: what multiplies dense INT8 weights instead of our kernels.
        has_whole_prompts: whether cuDNN attends for long whole prompts.
        is_fused: whether one token takes launches of its own.
    """
    last = layers[-1].attention
    kind = "latent" if isinstance(last, LatentWeights) else "grouped queries"
    weights = "int8" if last.output.scale is not None else _name(dtype)
    few = f"triton, weights in {weights} read once"
    many = "triton, int8 x int8" if weights == "int8" else "cublas, and triton for experts"
    if dense_library is not None:
        few = many = _beside(dense_library, layers, head, dtype)
    whole = {"long prompts": "cudnn, keys and values side by side"} if has_whole_prompts else {}
    return {
        **whole,
        "attention": f"{flash or 'triton'}, {kind}, pages of {block_size} tokens",
        "one token": "triton, four launches a layer beside attention" if is_fused else "as few rows",
        "few rows": few,
        "many rows": many,
        "sampling": "triton",
    }


def _beside(library: str, layers: Sequence[GpuLayer], head: Matrix, dtype: torch.dtype) -> str:
    """What a library multiplies, and what others do beside it."""
    dense = [head, *(matrix for layer in layers for matrix in layer.dense_matrices)]
    parts = [f"{library} for dense layers, int8 x int8 with a scale a token"]
    if any(isinstance(layer.feed_forward, ExpertWeights) for layer in layers):
        parts.append("triton for experts")
    if any(matrix.scale is None for matrix in dense):
        where = "the head" if all(matrix.scale is not None for matrix in dense[1:]) else "dense layers"
        parts.append(f"triton and cublas for {where} in {_name(dtype)}")
    return ", ".join(parts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
