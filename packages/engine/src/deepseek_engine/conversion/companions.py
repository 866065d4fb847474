"""What lies beside the weights of a checkpoint: config.json, tokenizer, chat template."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

from deepseek_engine.conversion.gguf_folder import gguf_fields, write_gguf_tokenizer
from deepseek_engine.gguf.checkpoint import GGUFCheckpoint
from deepseek_engine.weights import CheckpointSource

_COPIED: Final = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken",
    "spiece.model", "chat_template*", "*.jinja", "generation_config.json", "*.py", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files that other readers of the folder want; code is copied, as `auto_map` names it, and never run."""
_INT8: Final[dict[str, Any]] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "group_size": None,
}
_MTP_FIELDS: Final = ("num_nextn_predict_layers", "num_mtp_layers")


def int8_quantization_config(ignore: list[str]) -> dict[str, Any]:
    """INT8 weights with a scale a channel and activations with one a token, in the words of compressed-tensors.

    Args:
        ignore: linear modules that are not quantised.
    """
    group = {
        "targets": ["Linear"],
        "weights": {**_INT8, "strategy": "channel", "dynamic": False},
        "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        "output_activations": None,
        "format": "int-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def config_fields(path: Path, source: CheckpointSource, dtype: str) -> dict[str, Any]:
    """The fields of config.json: the folder's own, without its quantization, or those of a GGUF file.

    Args:
        path: the checkpoint.
        source: its tensors.
        dtype: of a GGUF file's model.
    """
    if isinstance(source, GGUFCheckpoint):
        fields = gguf_fields(source, dtype)
    else:
        fields = cast("dict[str, Any]", json.loads((path / "config.json").read_text(encoding="utf-8")))
    for name in ("quantization_config", "compression_config"):
        fields.pop(name, None)
    for name in _MTP_FIELDS:  # their layers are left behind
        if name in fields:
            fields[name] = 0
    return fields


def write_companions(path: Path, folder: Path, max_model_len: int) -> list[str]:
    """Copy what belongs to text, or write it from a GGUF file; remarks for the user."""
    if path.is_file():
        return write_gguf_tokenizer(path, folder, max_model_len)
    for file in _files_to_copy(path):
        shutil.copyfile(file, folder / file.name)
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return [] if has_tokenizer else [f"{path} has no tokenizer.json: the new folder has none either"]


def _files_to_copy(folder: Path) -> Iterable[Path]:
    return sorted({file for pattern in _COPIED for file in folder.glob(pattern) if file.is_file()})
