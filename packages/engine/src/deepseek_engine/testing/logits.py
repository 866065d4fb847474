"""A checkpoint's logits at every position, computed by the engine's torch model in float32. For tests only."""

from pathlib import Path

import torch
from torch import Tensor

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import build_runner
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence
from deepseek_engine.step_inputs import prepare_step
from deepseek_engine.step_model import TorchModel

_NUM_BLOCKS = 16
_BLOCK_SIZE = 16


def load_torch_model(folder: Path, quantization: str | None = None) -> TorchModel:
    """The model of a folder, in float32 beside INT8."""
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        quantization=quantization,
        num_kv_blocks=_NUM_BLOCKS,
        block_size=_BLOCK_SIZE,
        max_model_len=_NUM_BLOCKS * _BLOCK_SIZE,
    )
    model = build_runner(config).model
    assert isinstance(model, TorchModel)
    return model


def load_transformer(folder: Path, quantization: str | None = None) -> Transformer:
    """Its parameters."""
    return load_torch_model(folder, quantization).transformer


def logits_at_every_position(folder: Path, token_ids: list[int], quantization: str | None = None) -> Tensor:
    """float32 [tokens, vocab_size]; at most 256 tokens."""
    model = load_torch_model(folder, quantization)
    sequence = Sequence("r", 0, token_ids, SamplingParams(temperature=0.0), sampling_seed=0)
    sequence.block_table = list(range(_NUM_BLOCKS))
    with torch.inference_mode():
        inputs = prepare_step([ScheduledSequence(sequence, len(token_ids))], _BLOCK_SIZE, torch.float32)
        rows = torch.arange(len(token_ids))
        return model.transformer(inputs.token_ids_T, inputs.positions_T, rows, model.cache, inputs.metadata)
