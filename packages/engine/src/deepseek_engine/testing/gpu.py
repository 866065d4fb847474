"""A GpuRunner wherever tests run: on a GPU where there is one, else on the CPU, its kernels in Triton's interpreter."""

from pathlib import Path
from typing import Final

import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.gpu_build import GpuPlan, build_gpu_runner, put_on_device
from deepseek_engine.gpu_runner import GpuRunner
from deepseek_engine.model_runner import open_checkpoint, store_quantized
from deepseek_engine.models.mtp import with_mtp
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.weights import load_weights

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_runner(config: EngineConfig) -> GpuRunner:
    """What `build_runner` makes on a GPU, of a folder; `max_model_len` and a `dtype` have to be given."""
    model_config, source = open_checkpoint(Path(config.model))
    if config.speculation == "mtp":
        model_config = with_mtp(model_config, source.names(), config.model)
    dtype, max_model_len = getattr(torch, config.dtype), config.max_model_len
    assert max_model_len is not None
    with torch.device("meta"):
        model = Transformer(model_config, max_model_len, dtype)
        store_quantized(model, config.quantization, source)
    put_on_device(model, DEVICE)
    with torch.inference_mode():
        report = load_weights(model, source)
        return build_gpu_runner(model, report, GpuPlan(config, max_model_len, dtype, DEVICE))
