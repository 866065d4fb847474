"""A checkpoint's logits at every position, computed by the engine's torch model in float32. For tests only."""

from pathlib import Path
from typing import Final

from torch import Tensor

from deepseek_engine.config import EngineConfig
from deepseek_engine.model_runner import build_cpu_runner
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.step_model import TorchModel
from deepseek_engine.whole_prompt import run_whole_prompt

_MAX_TOKENS: Final = 256


def load_transformer(folder: Path, quantization: str | None = None) -> Transformer:
    """The model of a folder, in float32 beside INT8."""
    config = EngineConfig(
        model=str(folder), dtype="float32", quantization=quantization, num_kv_blocks=1, max_model_len=_MAX_TOKENS
    )
    model = build_cpu_runner(config).model
    assert isinstance(model, TorchModel)
    return model.transformer


def logits_at_every_position(folder: Path, token_ids: list[int], quantization: str | None = None) -> Tensor:
    """float32 [tokens, vocab_size]; at most 256 tokens."""
    return run_whole_prompt(load_transformer(folder, quantization), token_ids)
