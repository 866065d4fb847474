"""A checkpoint's config.json to a ModelConfig: one reader a family."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_config.deepseek import (
    read_deepseek_moe,
    read_deepseek_v2,
    read_deepseek_v3,
    read_deepseek_v32,
)
from deepseek_engine.model_config.fields import Fields
from deepseek_engine.model_config.jetmoe import read_jetmoe
from deepseek_engine.model_config.llama import read_llama, read_qwen2, read_qwen3
from deepseek_engine.model_config.mixtral import read_mixtral, read_phimoe
from deepseek_engine.model_config.model import ModelConfig
from deepseek_engine.model_config.quantization import read_quantization

_READERS: Final[dict[str, Callable[[Fields], ModelConfig]]] = {
    "LlamaForCausalLM": read_llama,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen3ForCausalLM": read_qwen3,
    "MixtralForCausalLM": read_mixtral,
    "PhimoeForCausalLM": read_phimoe,
    "PhiMoEForCausalLM": read_phimoe,  # as Phi-3.5-MoE's own file spells it
    "JetMoeForCausalLM": read_jetmoe,
    "DeepseekForCausalLM": read_deepseek_moe,
    "DeepseekV2ForCausalLM": read_deepseek_v2,
    "DeepseekV3ForCausalLM": read_deepseek_v3,
    "DeepseekV32ForCausalLM": read_deepseek_v32,
}

MAX_LAYERS: Final = 4096
"""No model has a tenth of that; each takes memory before a weight is looked at."""

SUPPORTED_ARCHITECTURES: Final = tuple(_READERS)

_MISSING_PARTS: Final = {
    "DeepseekV4ForCausalLM": "compressed attention over sliding windows, hyper-connections and hash routing",
    "DeepseekV41ForCausalLM": "compressed attention, an encoder beside the decoder and n-gram memory",
}
"""What well-known architectures have that this engine does not compute."""


def read_model_config(folder: Path) -> ModelConfig:
    """Read `config.json`.

    Raises:
        ModelLoadError: the file is missing or not JSON, a field is missing or of another type, or the model is not
            supported.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): a checkpoint folder has a config.json") from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path} is not a JSON object")
    return parse_model_config(cast("dict[str, Any]", values), str(path))


def parse_model_config(values: dict[str, Any], source: str) -> ModelConfig:
    """The shape that the fields of a config.json describe; raises as `read_model_config`.

    Args:
        values: the fields.
        source: what errors call the file.
    """
    fields = Fields(values, source)
    architecture = next(iter(fields.texts("architectures")), "(none)")
    if architecture not in _READERS:
        missing = _MISSING_PARTS.get(architecture)
        raise ModelLoadError(
            f"architecture {architecture} is not supported{f' ({missing})' if missing else ''}: this engine runs "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if (num_layers := fields.integer("num_hidden_layers", 0)) > MAX_LAYERS:
        raise ModelLoadError(f"{source}: num_hidden_layers={num_layers} is beyond {MAX_LAYERS}")
    for name in ("hidden_act", "activation_function"):
        if (activation := fields.text(name, "silu")) != "silu":
            raise ModelLoadError(f"{name}={activation!r} is not supported: only silu is")
    try:
        return replace(_READERS[architecture](fields), quantization=read_quantization(fields))
    except ZeroDivisionError as error:
        raise ModelLoadError(f"{source}: a count that others are divided by is 0") from error
