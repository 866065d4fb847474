"""Built-in shapes: models of known sizes with random weights, for benchmarks. No file, no download, no language.

`shape:NAME` is a model wherever a folder is. Weights are drawn on the device (`random_source`), and text is token ids
written as numbers (`numbers_tokenizer`).
"""

from typing import Any, Final

from deepseek_engine.errors import ModelLoadError

PREFIX: Final = "shape:"

_SEED: Final[dict[str, Any]] = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "intermediate_size": 1408,
    "vocab_size": 102400,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
}
_TINY_MOE: Final = _SEED | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "intermediate_size": 96,
    "vocab_size": 512,
}
_V2_LITE: Final[dict[str, Any]] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "intermediate_size": 10944,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "attention_bias": False,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
    },
}
_TINY_V2: Final = _V2_LITE | {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "intermediate_size": 96,
    "vocab_size": 512,
}

_V3_LITE: Final = _V2_LITE | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "num_nextn_predict_layers": 1,
}
_TINY_V3: Final = _V3_LITE | {
    name: value for name, value in _TINY_V2.items() if isinstance(value, int) and value != _V2_LITE[name]
}

SHAPES: Final = {
    "seed-3.4b": _SEED,
    "v2-lite": _V2_LITE,
    "v3-lite": _V3_LITE,
    "tiny-moe": _TINY_MOE,
    "tiny-v2": _TINY_V2,
    "tiny-v3": _TINY_V3,
}
"""Name -> the fields of a config.json.

seed-3.4b is a Mixtral of 3.44 G parameters, v2-lite has the sizes of DeepSeek-V2-Lite (15.7 G), v3-lite the same with
the routing of V3 and its layer for multi-token prediction; the tiny ones are their likes for tests.
"""


def is_shape(model: str) -> bool:
    """Whether `model` names a built-in shape, be it a known one or not."""
    return model.startswith(PREFIX)


def shape_fields(model: str) -> dict[str, Any]:
    """The config.json of `shape:NAME`.

    Raises:
        ModelLoadError: there is no such shape.
    """
    name = model.removeprefix(PREFIX)
    if name not in SHAPES:
        raise ModelLoadError(f"{model}: there is no shape {name!r}, choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
