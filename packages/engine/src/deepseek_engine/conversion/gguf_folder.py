"""A GGUF file's metadata as the files of a folder: config.json, tokenizer, chat template."""

from pathlib import Path
from typing import Any, Final

from deepseek_engine.conversion.json_file import write_json
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.checkpoint import GGUFCheckpoint
from deepseek_engine.gguf.metadata import read_gguf_metadata
from deepseek_engine.gguf.tokenizer import build_gguf_tokenizer

_MODEL_TYPES: Final = {
    "LlamaForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "DeepseekForCausalLM": "deepseek",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
}
"""What transformers calls the models that GGUF files hold."""


def gguf_fields(checkpoint: GGUFCheckpoint, dtype: str) -> dict[str, Any]:
    """The fields of config.json."""
    given = {name: value for name, value in checkpoint.fields.items() if value is not None}
    model_type = _MODEL_TYPES[checkpoint.config.architecture]
    return {"model_type": model_type, "hidden_act": "silu", **given, "torch_dtype": dtype}


def write_gguf_tokenizer(path: Path, folder: Path, max_model_len: int) -> list[str]:
    """Write the tokenizer and the chat template, if the file has a tokenizer whose rules are known; remarks if not."""
    metadata = read_gguf_metadata(path)
    try:
        tokenizer = build_gguf_tokenizer(metadata)
    except ModelLoadError as error:
        return [f"no tokenizer.json was written: {error}"]
    backend = tokenizer.backend
    backend.save(str(folder / "tokenizer.json"))
    ends = tokenizer.eos_token_ids
    words = {"bos_token": tokenizer.bos_token_id, "eos_token": ends[0] if ends else None}
    settings = {name: backend.id_to_token(index) for name, index in words.items() if index is not None}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_model_len, **settings},
    )
    write_json(folder / "generation_config.json", {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(ends)})
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    return []
