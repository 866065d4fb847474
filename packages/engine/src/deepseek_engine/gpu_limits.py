"""What a GPU does not run yet, refused before anything is loaded, with the way out."""

import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.kernels.flash_attention import load_flash_attention
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
    if config.speculation == "mtp":
        raise ModelLoadError("speculation='mtp' is for device='cpu' in this version: use speculation='ngram'")
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
