"""How a checkpoint's weights are stored, from the `quantization_config` of its config.json."""

from dataclasses import dataclass
from typing import Final

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_config.fields import Fields

_SUPPORTED: Final = (
    "supported are quant_method 'fp8' in blocks (DeepSeek V3, R1, V3.1, V3.2) and 'compressed-tensors' with INT8 "
    "weights a channel and dynamic activations a token; or take the unquantised checkpoint and --quantization int8"
)
_INT8_FORMATS: Final = ("int-quantized", "naive-quantized")
"""Two names of compressed-tensors for the same layout: INT8 values as they are, beside their scales."""


@dataclass(frozen=True, slots=True)
class Fp8BlocksConfig:
    """FP8 (e4m3) weights with a scale for each block of rows and columns, in `*_scale_inv`.

    Attributes:
        block: rows and columns of a block; those at the edges may be smaller.
        scale_fmt: `ue8m0` if scales are powers of two, which may then be stored as their exponents alone.
        modules_to_not_convert: modules whose weights are not FP8, by name or by a dotted part of it.
    """

    block: tuple[int, int]
    scale_fmt: str
    modules_to_not_convert: tuple[str, ...]

    def is_converted(self, module: str) -> bool:
        """Whether the weights of a module may be FP8."""
        dotted = f".{module}."
        return not any(f".{name}." in dotted for name in self.modules_to_not_convert)


@dataclass(frozen=True, slots=True)
class Int8ChannelsConfig:
    """INT8 weights with a scale for each output channel, in `*_scale`; which weights, the tensors themselves tell."""


QuantizationConfig = Fp8BlocksConfig | Int8ChannelsConfig


def read_quantization(fields: Fields) -> QuantizationConfig | None:
    """What `quantization_config` asks for; None where weights are stored as floats.

    Raises:
        ModelLoadError: it asks for something else, or is incomplete.
    """
    # Files of compressed-tensors before 0.5 say compression_config.
    table = fields.table("quantization_config") or fields.table("compression_config")
    if not table:
        return None
    method = table.text("quant_method", "(none)")
    match method:
        case "fp8":
            return _read_fp8(table)
        case "compressed-tensors":
            return _read_compressed_tensors(table)
        case _:
            raise ModelLoadError(f"{table.source}: quant_method={method!r} is not supported: {_SUPPORTED}")


def _read_fp8(table: Fields) -> Fp8BlocksConfig:
    _expect(table, "fmt", table.text("fmt", "e4m3"), "e4m3")
    _expect(table, "activation_scheme", table.text("activation_scheme", "dynamic"), "dynamic")
    scale_fmt = _expect(table, "scale_fmt", table.text("scale_fmt", "float"), "float", "ue8m0")
    if "weight_block_size" not in table:
        raise ModelLoadError(f"{table.source}: without weight_block_size, FP8 is not supported: {_SUPPORTED}")
    block = table.numbers("weight_block_size")
    if len(block) != 2 or not all(size >= 1 and size == int(size) for size in block):
        raise ModelLoadError(f"{table.source}: weight_block_size={list(block)} is not two whole numbers from 1")
    skipped = table.texts("modules_to_not_convert")
    return Fp8BlocksConfig((int(block[0]), int(block[1])), scale_fmt, skipped)


def _read_compressed_tensors(table: Fields) -> Int8ChannelsConfig:
    _expect(table, "format", table.text("format", "(none)"), *_INT8_FORMATS, "mixed-precision")
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        # An empty table asks for nothing, and a sparsity of format "dense" neither.
        part = table.table(name)
        if part and part.text("format", "") != "dense":
            raise ModelLoadError(f"{table.source}: {name} is not supported: {_SUPPORTED}")
    groups = table.table("config_groups")
    names = groups.names if groups else ()
    if groups is None or not names:
        raise ModelLoadError(f"{table.source} has no config_groups")
    for name in names:
        group = groups.table(name)
        if group is None:
            raise ModelLoadError(f"{groups.source}: {name} is not an object")
        _check_group(group)
    return Int8ChannelsConfig()


def _check_group(group: Fields) -> None:
    _expect(group, "format", group.text("format", "int-quantized"), *_INT8_FORMATS)
    weights, activations = group.table("weights"), group.table("input_activations")
    if not weights:
        raise ModelLoadError(f"{group.source} does not say how weights are quantised: {_SUPPORTED}")
    _check_int8(weights)
    _expect(weights, "strategy", weights.text("strategy", "tensor"), "channel")
    if weights.flag("dynamic", default=False):
        raise ModelLoadError(f"{weights.source}: dynamic=True is not supported for weights")
    if activations:  # without, they are in full precision: what INT8 does here errs less than a thousandth of a step
        _check_int8(activations)
        _expect(activations, "strategy", activations.text("strategy", "tensor"), "token")
        if not activations.flag("dynamic", default=False):
            raise ModelLoadError(f"{activations.source}: static activations are not supported: {_SUPPORTED}")
    if group.table("output_activations"):
        raise ModelLoadError(f"{group.source}: output_activations is not supported: {_SUPPORTED}")


def _check_int8(part: Fields) -> None:
    _expect(part, "type", part.text("type", "int"), "int")
    if (bits := part.integer("num_bits", 8)) != 8:
        raise ModelLoadError(f"{part.source}: num_bits={bits} is not supported: {_SUPPORTED}")
    if not part.flag("symmetric", default=True):
        raise ModelLoadError(f"{part.source}: symmetric=False is not supported: {_SUPPORTED}")


def _expect(table: Fields, name: str, value: str, *allowed: str) -> str:
    if value not in allowed:
        raise ModelLoadError(f"{table.source}: {name}={value!r} is not supported: {_SUPPORTED}")
    return value
