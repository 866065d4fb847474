"""The metadata of a GGUF file as the fields of a Hugging Face config.json, family by family.

Keys and their meaning are those of llama.cpp: what its converter writes (conversion/*.py), and what its models read
where a key is missing (src/models/*.cpp).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.keys import Keys
from deepseek_engine.gguf.metadata import GGUFValue
from deepseek_engine.model_config import ModelConfig, parse_model_config

Fields = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
"""Of the file's tensors, by name."""

_SOFTMAX: Final = 1
_SIGMOID: Final = 2

_NEUTRAL: Final[dict[str, tuple[GGUFValue, ...]]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_group_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "use_parallel_residual": (False,),
}
"""Keys that change what a model computes, with the values at which they do not: any other is refused."""


def read_gguf_config(
    metadata: Mapping[str, GGUFValue], shapes: Shapes, source: str, rope_factors: tuple[float, ...] | None = None
) -> ModelConfig:
    """The shape of the model; arguments and errors as of `read_gguf_fields`."""
    return parse_model_config(read_gguf_fields(metadata, shapes, source, rope_factors), source)


def read_gguf_fields(
    metadata: Mapping[str, GGUFValue], shapes: Shapes, source: str, rope_factors: tuple[float, ...] | None = None
) -> Fields:
    """The fields of the config.json that would describe the model.

    Args:
        metadata: the file's keys.
        shapes: of its tensors: they say what no key does, as how many words there are and what has a bias.
        source: what errors call the file.
        rope_factors: what divides each rotary frequency (`rope_freqs.weight`), where the file has it.

    Raises:
        ModelLoadError: the architecture is not supported, or a key is missing, of another type, out of range, or asks
            for what the engine does not compute.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _READERS:
        raise ModelLoadError(
            f"{source}: general.architecture={architecture!r} is not supported: of GGUF files, this engine runs "
            f"{', '.join(_READERS)}"
        )
    keys = Keys(metadata, architecture, source)
    for name, neutral in _NEUTRAL.items():
        if (value := keys.raw(name)) is not None and value not in neutral:
            raise keys.refused(name, f"not supported: only {neutral[-1]} is")
    fields = _READERS[architecture](keys, shapes)
    if rope_factors is not None:
        fields["rope_scaling"] = _fixed_factors(rope_factors, fields, source)
    return fields


def _decoder(keys: Keys, shapes: Shapes, architecture: str) -> Fields:
    """What all families have."""
    if "token_embd.weight" not in shapes:
        raise ModelLoadError(f"{keys.source} lacks the tensor token_embd.weight")
    num_layers = _num_layers(keys)
    if f"blk.{num_layers - 1}.attn_norm.weight" not in shapes:
        raise keys.refused("block_count", f"the file lacks blk.{num_layers - 1}.attn_norm.weight")
    fields: Fields = {
        "architectures": [architecture],
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": keys.count("embedding_length"),
        "num_hidden_layers": num_layers,
        "num_nextn_predict_layers": keys.size("nextn_predict_layers"),
        "num_attention_heads": keys.count("attention.head_count"),
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": _rope_theta(keys),
        "rope_scaling": _rope_scaling(keys),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if window := keys.size("attention.sliding_window"):
        fields["sliding_window"] = window
    return fields


def _num_layers(keys: Keys) -> int:
    """Without the layers that predict a second token, which converters count among the blocks."""
    return keys.count("block_count") - keys.size("nextn_predict_layers")


def _grouped_query(keys: Keys, shapes: Shapes, architecture: str) -> Fields:
    """A decoder with grouped-query attention."""
    fields = _decoder(keys, shapes, architecture)
    heads = fields["num_attention_heads"]
    head_dim = keys.count("attention.key_length", fields["hidden_size"] // heads or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.count(name, head_dim) != head_dim:
            raise keys.refused(name, f"not supported: it is to be as attention.key_length, {head_dim}")
    return fields | {
        "head_dim": head_dim,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "intermediate_size": keys.count("feed_forward_length"),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
    }


def _llama(keys: Keys, shapes: Shapes) -> Fields:
    if not keys.size("expert_count"):
        return _grouped_query(keys, shapes, "LlamaForCausalLM")
    return _grouped_query(keys, shapes, "MixtralForCausalLM") | {
        "num_local_experts": _expert_count(keys, shapes),
        "num_experts_per_tok": keys.count("expert_used_count"),
    }


def _qwen2(keys: Keys, shapes: Shapes) -> Fields:
    return _grouped_query(keys, shapes, "Qwen2ForCausalLM")


def _qwen3(keys: Keys, shapes: Shapes) -> Fields:
    return _grouped_query(keys, shapes, "Qwen3ForCausalLM")


def _deepseek(keys: Keys, shapes: Shapes) -> Fields:
    # llama.cpp never normalises the weights of this architecture's experts; MoE-16B does not either.
    fields = _grouped_query(keys, shapes, "DeepseekForCausalLM") | _experts(keys, shapes)
    if fields["routed_scaling_factor"] != 1.0:
        raise keys.refused("expert_weights_scale", "not supported for this architecture: only 1 is")
    return fields


def _deepseek2(keys: Keys, shapes: Shapes) -> Fields:
    """V2 and V3 are one architecture of llama.cpp, told apart by how experts are scored; files without it are V2's."""
    gating = keys.size("expert_gating_func") or _SOFTMAX
    if gating not in (_SOFTMAX, _SIGMOID):
        raise keys.refused("expert_gating_func", "1 (softmax) and 2 (sigmoid) are supported")
    is_v3 = gating == _SIGMOID
    groups = keys.size("expert_group_count") or 1
    grouped = {"n_group": groups, "topk_group": keys.size("expert_group_used_count") or 1}
    if is_v3:
        routing: Fields = grouped | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    elif groups > 1:
        routing = grouped | {"topk_method": "group_limited_greedy"}
    else:
        routing = {"topk_method": "greedy"}
    fields = _decoder(keys, shapes, "DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM")
    return (
        fields
        | _experts(keys, shapes)
        | routing
        | _latent_attention(keys)
        | {"intermediate_size": keys.count("feed_forward_length"), "norm_topk_prob": keys.flag("expert_weights_norm")}
    )


def _latent_attention(keys: Keys) -> Fields:
    """Files from before `attn_kv_b` was split give the lengths of a head; later ones those of the cached latent too."""
    key_length = keys.size("attention.key_length_mla") or keys.count("attention.key_length")
    value_length = keys.size("attention.value_length_mla") or keys.count("attention.value_length")
    rope_dim = keys.count("rope.dimension_count")
    if key_length <= rope_dim:
        raise keys.refused("rope.dimension_count", f"it is to be below a key's length, {key_length}")
    return {
        "q_lora_rank": keys.size("attention.q_lora_rank") or None,
        "kv_lora_rank": keys.count("attention.kv_lora_rank"),
        "qk_nope_head_dim": key_length - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": value_length,
    }


def _expert_count(keys: Keys, shapes: Shapes) -> int:
    """Checked against a router at once: names are made of it."""
    count = keys.count("expert_count")
    router = f"blk.{_num_layers(keys) - 1}.ffn_gate_inp.weight"
    if router not in shapes:
        raise keys.refused("expert_count", f"the file lacks {router}")
    if shapes[router][0] != count:
        raise keys.refused("expert_count", f"{router} has shape {list(shapes[router])}")
    return count


def _experts(keys: Keys, shapes: Shapes) -> Fields:
    """DeepSeek's experts."""
    return {
        "n_routed_experts": _expert_count(keys, shapes),
        "num_experts_per_tok": keys.count("expert_used_count"),
        "n_shared_experts": keys.size("expert_shared_count"),
        "moe_intermediate_size": keys.count("expert_feed_forward_length"),
        "first_k_dense_replace": keys.size("leading_dense_block_count"),
        "routed_scaling_factor": 1.0,
    } | keys.numbers_given(routed_scaling_factor="expert_weights_scale")


def _rope_theta(keys: Keys) -> float:
    theta = keys.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise keys.refused("rope.freq_base", "it is to be above 1")
    return theta


def _rope_scaling(keys: Keys) -> Fields | None:
    kind = keys.text("rope.scaling.type", "linear")  # llama.cpp's default; old files have but `scale_linear`
    factor = keys.numbers_given(old="rope.scale_linear", new="rope.scaling.factor")
    match kind:
        case "none":
            return None
        case "linear":
            scale = factor.get("new", factor.get("old", 1.0))
            return None if scale == 1.0 else {"rope_type": "linear", "factor": scale}
        case "yarn":
            return _yarn(keys)
        case _:
            raise keys.refused("rope.scaling.type", "none, linear and yarn are supported")


def _yarn(keys: Keys) -> Fields:
    scaling: Fields = {
        "rope_type": "yarn",
        "factor": keys.number("rope.scaling.factor"),
        "original_max_position_embeddings": keys.count("rope.scaling.original_context_length"),
    } | keys.numbers_given(
        beta_fast="rope.scaling.yarn_beta_fast",
        beta_slow="rope.scaling.yarn_beta_slow",
        attention_factor="rope.scaling.attn_factor",
    )
    scaling |= keys.numbers_given(attention_factor="rope.scaling.yarn_attn_factor")
    # deepseek2 stores a tenth of `mscale_all_dim`, others all of it. No key has `mscale`: DeepSeek's models have both
    # alike, and others have 1.
    if log_multiplier := keys.numbers_given(value="rope.scaling.yarn_log_multiplier").get("value"):
        is_deepseek = keys.raw("attention.kv_lora_rank") is not None
        all_dim = round(10 * log_multiplier, 9) if is_deepseek else log_multiplier
        scaling |= {"mscale": all_dim if is_deepseek else 1.0, "mscale_all_dim": all_dim}
    return scaling


def _fixed_factors(factors: tuple[float, ...], fields: Fields, source: str) -> Fields:
    """Llama 3.1's scaling, of which the file holds the result: LongRoPE with one set of factors does just that."""
    if fields["rope_scaling"] is not None:
        raise ModelLoadError(f"{source} has both rope_freqs.weight and rope.scaling.type: not supported")
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise ModelLoadError(f"{source}: rope_freqs.weight holds a factor that is not a positive number")
    return {
        "rope_type": "longrope",
        "short_factor": list(factors),
        "long_factor": list(factors),
        "attention_factor": 1.0,
        "original_max_position_embeddings": fields["max_position_embeddings"],
    }


_READERS: Final[dict[str, Callable[[Keys, Shapes], Fields]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "deepseek": _deepseek,
    "deepseek2": _deepseek2,
}
