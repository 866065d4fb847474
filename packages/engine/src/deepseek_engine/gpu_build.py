"""From settings to a GpuRunner: the model on its device, memory measured, the cache as large as fits, graphs captured."""

import logging
import time
from typing import Final

import torch

from deepseek_engine.config import EngineConfig
from deepseek_engine.gpu_runner import GpuRunner
from deepseek_engine.load_report import LoadReport
from deepseek_engine.models.transformer import Transformer

logger = logging.getLogger(__name__)

PROFILE_BLOCKS: Final = 2
"""Of a cache that only serves to measure what a step needs beside it: every slot is written to, none is read."""


def put_on_device(model: Transformer, device: torch.device) -> None:
    """Give a model that was made on the meta device its memory, without values."""
    model.to_empty(device=device)
    if model.config.tie_word_embeddings:
        model.head.weight = model.embedding


def build_gpu_runner(
    config: EngineConfig,
    model: Transformer,
    report: LoadReport,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> GpuRunner:
    """Make the runner of a loaded model.

    Args:
        config: of the engine.
        model: on the device; its tensors are taken over.
        report: of what was loaded.
        max_model_len: context in tokens.
        dtype: of weights and, unless it is quantised, of the cache.
        device: of CUDA.

    Raises:
        ModelLoadError: memory does not suffice.
    """
    began = time.monotonic()
