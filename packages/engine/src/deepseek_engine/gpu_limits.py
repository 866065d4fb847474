"""What a GPU does not run yet, refused before anything is loaded, with the way out."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.flash_library import load_flash_attention
from deepseek_engine.kernels.linear_bitsandbytes import SIZE_MULTIPLE, try_bitsandbytes
from deepseek_engine.layers.linear import Linear
from deepseek_engine.layers.moe import MixtureOfExperts
from deepseek_engine.model_config import GroupedQueryConfig, ModelConfig
from deepseek_engine.models.transformer import Transformer


def gpu_dtype(config: EngineConfig) -> torch.dtype:
    """The type of weights and activations that the settings ask for on a GPU; `auto` is bfloat16.

    Raises:
        ModelLoadError: there are no kernels for it.
    """
    dtype = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    if dtype not in (torch.bfloat16, torch.float32):
        raise ModelLoadError(f"dtype={config.dtype!r} does not run on a GPU yet: use dtype='bfloat16' or 'float32'")
    return dtype


def check_settings(config: EngineConfig) -> None:
    """Refuse settings that are for CPUs.

    Raises:
        ModelLoadError: there is one; the message names it.
    """
    if config.tensor_parallel_size > 1:
        raise ModelLoadError(
            f"tensor_parallel_size={config.tensor_parallel_size} is for device='cpu' in this version: without it "
            "one GPU computes the whole model"
        )
    if config.enable_lora:
        raise ModelLoadError("enable_lora is for device='cpu' in this version: GPUs compute without adapters")


def check_attention(config: EngineConfig, model_config: ModelConfig) -> None:
    """Refuse flash-attn where it is not installed or does not compute the model: nothing takes its place unasked.

    Raises:
        ModelLoadError: so it is; the message says what is missing.
    """
    if config.attention_backend != "flash":
        return
    load_flash_attention()
    if any(not isinstance(layer.attention, GroupedQueryConfig) for layer in model_config.layers):
        raise ModelLoadError(
            f"attention_backend='flash' is for grouped-query attention, and {model_config.architecture} has another "
            "kind: use attention_backend='triton'"
        )


def check_types(model: Transformer, dtype: torch.dtype) -> None:
    """Refuse INT8 weights, whoever asked for them, beside float32 activations: a kernel does not fit the card.

    Args:
        model: without its weights.
        dtype: of activations.

    Raises:
        ModelLoadError: it has INT8 weights, and dtype is not bfloat16.
    """
    has_int8 = any(parameter.dtype is torch.int8 for parameter in model.parameters())
    if has_int8 and dtype is not torch.bfloat16:
        raise ModelLoadError("INT8 weights with dtype='float32' are for device='cpu': on a GPU use dtype='bfloat16'")


def check_bitsandbytes(model: Transformer, device: torch.device) -> None:
    """Refuse what `linear_backend='bitsandbytes'` could not multiply, or not in INT8.

    Args:
        model: without its weights.
        device: that they are for; the library is tried on it.

    Raises:
        ModelLoadError: no dense layer is INT8, the sizes of one do not fit, or the library does not work here.
    """
    int8 = {
        name: tuple(linear.weight.shape) for name, linear in _dense_linears(model) if linear.weight_scale is not None
    }
    if not int8:
        raise ModelLoadError(
            "linear_backend='bitsandbytes' multiplies INT8 weights, and no dense layer of the model has them: use "
            "quantization='int8', or linear_backend='auto'"
        )
    for name, shape in int8.items():
        if any(size % SIZE_MULTIPLE for size in shape):
            raise ModelLoadError(
                f"linear_backend='bitsandbytes' multiplies INT8 weights of sizes that are multiples of "
                f"{SIZE_MULTIPLE}, and {name} is {' x '.join(map(str, shape))}: use linear_backend='triton'"
            )
    try_bitsandbytes(device)


def _dense_linears(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """Linear layers and their names; the shared experts go beside the routed ones."""
    inside: tuple[str, ...] = ()
    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if isinstance(module, MixtureOfExperts):
            inside = (*inside, f"{name}.")
        elif isinstance(module, Linear) and not name.startswith(inside):
            yield name, module
