"""Configurations that the engine does not compute as they ask are refused at load, by the field that is to blame."""

from typing import Any

import pytest
from transformers import DeepseekV2Config, DeepseekV3Config, JetMoeConfig, MixtralConfig, Qwen2Config

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_config import LatentConfig, parse_model_config
from deepseek_engine.testing.families import TINY

LATENT = {**TINY, "num_key_value_heads": 4, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
V3 = DeepseekV3Config(**LATENT, v_head_dim=128).to_dict() | {"architectures": ["DeepseekV3ForCausalLM"]}
V2 = DeepseekV2Config(**LATENT, num_experts_per_tok=2).to_dict() | {"architectures": ["DeepseekV2ForCausalLM"]}
MIXTRAL = MixtralConfig(**TINY).to_dict() | {"architectures": ["MixtralForCausalLM"]}


def test_deepseek_v3_caches_576_numbers_a_token_and_layer() -> None:
    config = parse_model_config(V3, "config.json")
    assert isinstance(config.layers[0].attention, LatentConfig)
    assert [spec.num_elements for spec in config.cache_specs] == [576, 576]
    assert config.kv_elements_per_token == 2 * 576


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            MIXTRAL | {"architectures": ["DeepseekV4ForCausalLM"]},
            r"DeepseekV4ForCausalLM is not supported \(compressed",
        ),
        (MIXTRAL | {"architectures": []}, r"architecture \(none\) is not supported"),
        (MIXTRAL | {"num_experts_per_tok": 9}, r"num_experts_per_tok=9 is outside 1..8"),
        (MIXTRAL | {"num_attention_heads": 0}, "that others are divided by is 0"),
        (MIXTRAL | {"hidden_size": -64}, "hidden_size=-64 is negative"),
        (MIXTRAL | {"hidden_size": "64"}, "hidden_size='64' is not of type int"),
        (MIXTRAL | {"head_dim": 15}, "head_dim.*needs pairs"),
        (MIXTRAL | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (V2 | {"norm_topk_prob": True}, "norm_topk_prob=True"),
        (V2 | {"topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
        (V3 | {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        (V3 | {"n_group": 7}, "do not split into n_group=7"),
        (V3 | {"topk_group": 9}, r"topk_group=9 is outside 1..8 \(n_group\)"),
        (V3 | {"kv_lora_rank": None}, "lacks the field 'kv_lora_rank'"),
        (
            V3 | {"q_lora_rank": None, "architectures": ["DeepseekV32ForCausalLM"]},
            "q_lora_rank is missing: the indexer",
        ),
        (
            JetMoeConfig(**TINY, activation_function="gelu").to_dict() | {"architectures": ["JetMoeForCausalLM"]},
            "activation_function='gelu'",
        ),
        (
            MIXTRAL | {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}},
            "short_factor has 1 entries: 16 rotated features need 8",
        ),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        parse_model_config(fields, "config.json")


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, None),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, 64),
    ],
    ids=["off", "on for no layer", "on for the last layer"],
)
def test_a_sliding_window_counts_only_where_a_layer_has_it(fields: dict[str, Any], window: int | None) -> None:
    config = Qwen2Config(**TINY, **fields).to_dict() | {"architectures": ["Qwen2ForCausalLM"]}
    assert parse_model_config(config, "config.json").sliding_window == window
    del config["layer_types"]  # as older files are written
    assert parse_model_config(config | fields, "config.json").sliding_window == window
