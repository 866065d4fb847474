"""How positions rotate queries and keys: the base, which features rotate, and how frequencies are stretched."""

import math
from dataclasses import dataclass

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_config.fields import Fields


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): a ramp over frequencies between `beta_fast` and `beta_slow` turns.

    Attributes:
        attention_factor: multiplies cosines and sines.
        truncate: whether the ramp begins and ends at whole frequencies.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own.

    The long factors serve a context beyond `original_max_position_embeddings`, the short ones any other. The choice is
    made once, by `max_model_len`: a token's cached key must not depend on how long its sequence will grow.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    short_mscale: float
    long_mscale: float
    original_max_position_embeddings: int


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """`dim` features of a head rotate, in pairs; `theta` is the base of their frequencies."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.dim % 2:
            raise ModelLoadError(f"{self.dim} features of a head would rotate (head_dim): rotary embedding needs pairs")
        if isinstance(self.scaling, LongRopeScaling):
            for name in ("short_factor", "long_factor"):
                if len(getattr(self.scaling, name)) != self.dim // 2:
                    raise ModelLoadError(
                        f"{name} has {len(getattr(self.scaling, name))} entries: {self.dim} rotated features need "
                        f"{self.dim // 2}"
                    )


def read_rope(fields: Fields, dim: int, default_theta: float = 10000.0) -> RopeConfig:
    """Rotary base and scaling; transformers 5 writes `rope_parameters`, older files `rope_theta` and `rope_scaling`.

    Raises:
        ModelLoadError: the kind of scaling is not supported, or a field of it is missing.
    """
    parameters = rope_parameters(fields)
    theta = parameters.number("rope_theta", None) or fields.number("rope_theta", default_theta)
    if (partial := parameters.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))) != 1.0:
        raise ModelLoadError(f"partial_rotary_factor={partial} is not supported for this architecture")
    return RopeConfig(dim, theta, _read_scaling(parameters, fields))


def rope_parameters(fields: Fields) -> Fields:
    """The checkpoint's own table of rotary settings, empty if it has none."""
    return fields.table("rope_parameters") or fields.table("rope_scaling") or Fields({}, fields.source)


def rope_type(parameters: Fields) -> str:
    """The kind of scaling."""
    return parameters.text("rope_type", None) or parameters.text("type", "default")


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature for a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _read_scaling(parameters: Fields, fields: Fields) -> RopeScaling | None:
    match rope_type(parameters):
        case "default" | "dynamic":
            # Dynamic scaling begins past the trained context, which the engine never leaves.
            return None
        case "linear":
            return LinearScaling(parameters.number("factor"))
        case "llama3":
            return Llama3Scaling(
                factor=parameters.number("factor"),
                low_freq_factor=parameters.number("low_freq_factor", 1.0),
                high_freq_factor=parameters.number("high_freq_factor", 4.0),
                original_max_position_embeddings=_original_length(parameters, fields),
            )
        case "yarn":
            return _read_yarn(parameters, fields)
        case "longrope" | "su":
            return _read_longrope(parameters, fields)
        case other:
            raise ModelLoadError(
                f"rope_type={other!r} is not supported: default, linear, dynamic, llama3, yarn and longrope are"
            )


def _original_length(parameters: Fields, fields: Fields) -> int:
    name = "original_max_position_embeddings"
    outside = fields.integer(name, fields.integer("max_position_embeddings"))
    return outside if name in fields else parameters.integer(name, outside)


def _read_yarn(parameters: Fields, fields: Fields) -> YarnScaling:
    original = _original_length(parameters, fields)
    factor = parameters.number("factor", fields.integer("max_position_embeddings") / original)
    mscale, all_dim = parameters.number("mscale", 0.0), parameters.number("mscale_all_dim", 0.0)
    inferred = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim) if mscale and all_dim else yarn_mscale(factor)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=parameters.number("attention_factor", inferred),
        beta_fast=parameters.number("beta_fast", 32.0),
        beta_slow=parameters.number("beta_slow", 1.0),
        truncate=parameters.flag("truncate", default=True),
    )


def _read_longrope(parameters: Fields, fields: Fields) -> LongRopeScaling:
    original = _original_length(parameters, fields)
    factor = parameters.number("factor", fields.integer("max_position_embeddings") / original)
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    attention_factor = parameters.number("attention_factor", inferred)
    return LongRopeScaling(
        short_factor=parameters.numbers("short_factor"),
        long_factor=parameters.numbers("long_factor"),
        short_mscale=parameters.number("short_mscale", attention_factor),
        long_mscale=parameters.number("long_mscale", attention_factor),
        original_max_position_embeddings=original,
    )
