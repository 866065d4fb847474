"""A GGUF file's metadata as the files of a folder: config.json, tokenizer, chat template."""

from pathlib import Path
from typing import Any

from deepseek_engine.conversion.json_file import write_json
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf_metadata import read_gguf_metadata
from deepseek_engine.gguf_tokenizer import build_gguf_tokenizer
from deepseek_engine.model_config import DenseConfig, GroupedQueryConfig, ModelConfig


def gguf_fields(path: Path, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The fields of config.json.

    Raises:
        ModelLoadError: the model is of a kind that is not written.
    """
    layer = config.layers[0]
    attention, feed_forward = layer.attention, layer.feed_forward
    is_plain = isinstance(attention, GroupedQueryConfig) and isinstance(feed_forward, DenseConfig)
    if config.architecture != "LlamaForCausalLM" or not is_plain or config.rope.scaling is not None:
        raise ModelLoadError(f"{path}: of GGUF files, only dense llama ones can be written as a folder")
    return {
        "architectures": [config.architecture],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.intermediate_size,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.qkv_bias,
        "mlp_bias": feed_forward.bias,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
    }


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
