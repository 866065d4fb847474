"""ModelConfig: the shape of a model, read from its checkpoint. Fields keep the checkpoint's spelling."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deepseek_engine.errors import ModelLoadError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MixtralForCausalLM")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched past the trained context.

    `linear` divides every frequency by `factor`; `llama3` divides the low ones and blends the middle (Llama 3.1).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder's shape. `num_local_experts` is 0 for a dense feed-forward."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None
    num_local_experts: int = 0
    num_experts_per_tok: int = 0

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelLoadError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ModelLoadError(f"head_dim={self.head_dim} is odd: rotary embedding needs pairs")
        if not 0 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ModelLoadError(
                f"num_experts_per_tok={self.num_experts_per_tok} is outside 0..{self.num_local_experts} "
                "(num_local_experts)"
            )

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that the KV cache holds for one token, all layers together."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelConfig":
        """Read `config.json`.

        Raises:
            ModelLoadError: the file is missing or not JSON, a field is missing, or the model is not supported.
        """
        path = folder / "config.json"
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read ({error}): a checkpoint folder has a config.json") from error
        except ValueError as error:
            raise ModelLoadError(f"{path} is not JSON: {error}") from error
        try:
            return cls._from_hugging_face(fields)
        except KeyError as error:
            raise ModelLoadError(f"{path} lacks the field {error}") from error

    @classmethod
    def _from_hugging_face(cls, fields: dict[str, Any]) -> "ModelConfig":
        architecture = (fields.get("architectures") or ["(none)"])[0]
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise ModelLoadError(
                f"architecture {architecture} is not supported: this engine runs {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        if fields.get("hidden_act", "silu") != "silu":
            raise ModelLoadError(f"hidden_act={fields['hidden_act']!r} is not supported: only silu is")
        if fields.get("sliding_window") is not None:
            raise ModelLoadError(f"sliding_window={fields['sliding_window']} is not supported: attention here is full")
        num_heads = int(fields["num_attention_heads"])
        rope_theta, rope_scaling = _read_rope(fields)
        is_moe = architecture == "MixtralForCausalLM"
        return cls(
            architecture=architecture,
            vocab_size=int(fields["vocab_size"]),
            hidden_size=int(fields["hidden_size"]),
            intermediate_size=int(fields["intermediate_size"]),
            num_hidden_layers=int(fields["num_hidden_layers"]),
            num_attention_heads=num_heads,
            num_key_value_heads=int(fields.get("num_key_value_heads") or num_heads),
            head_dim=int(fields.get("head_dim") or fields["hidden_size"] // num_heads),
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            rope_theta=rope_theta,
            max_position_embeddings=int(fields["max_position_embeddings"]),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            attention_bias=bool(fields.get("attention_bias", False)),
            mlp_bias=bool(fields.get("mlp_bias", False)),
            rope_scaling=rope_scaling,
            num_local_experts=int(fields["num_local_experts"]) if is_moe else 0,
            num_experts_per_tok=int(fields["num_experts_per_tok"]) if is_moe else 0,
        )


def _read_rope(fields: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling; transformers 5 writes `rope_parameters`, older files `rope_theta` and `rope_scaling`."""
    parameters = cast("dict[str, Any]", fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    theta = float(parameters.get("rope_theta") or fields.get("rope_theta") or 10000.0)
    rope_type = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if rope_type == "default":
        return theta, None
    if rope_type not in {"linear", "llama3"}:
        raise ModelLoadError(f"rope_type={rope_type!r} is not supported: default, linear and llama3 are")
    return theta, RopeScaling(
        rope_type=rope_type,
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
        high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=int(parameters.get("original_max_position_embeddings", 8192)),
    )
