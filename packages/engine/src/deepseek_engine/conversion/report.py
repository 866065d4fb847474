"""What a conversion did: sizes and errors, for a reader and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

NUM_WORST: Final = 5


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """Relative RMS errors of what the INT8 model computes on a text, against full precision.

    Attributes:
        text: a file's name, or `built-in`.
        layers: of the hidden states after each layer; each includes what the layers before it did.
        logits: of the last ones.
    """

    text: str
    num_tokens: int
    layers: list[float]
    logits: float


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """Sizes in bytes, and errors by name.

    Attributes:
        bytes_before: of the tensors that were read, as they were stored; of a GGUF file all of it.
        bytes_float32: of the same tensors, if each value took four bytes.
        quantized_bytes: of the INT8 weights with their scales, a part of `bytes_after`.
        weight_errors: relative RMS error of each quantised weight.
        num_left_behind: tensors that the model does not use, such as the layers that predict a second token.
    """

    source: str
    out: str
    num_shards: int = 0
    num_quantized: int = 0
    num_kept: int = 0
    num_left_behind: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    bytes_float32: int = 0
    quantized_bytes: int = 0
    quantized_bytes_float32: int = 0
    weight_errors: dict[str, float] = field(default_factory=dict[str, float])
    output_errors: OutputErrors | None = None
    remarks: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        """Every field, and how many times smaller the weights have become."""
        return {
            **asdict(self),
            "ratio": _ratio(self.bytes_before, self.bytes_after),
            "ratio_to_float32": _ratio(self.bytes_float32, self.bytes_after),
            "quantized_ratio_to_float32": _ratio(self.quantized_bytes_float32, self.quantized_bytes),
        }

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        counts = f"{self.num_quantized} weights in INT8, {self.num_kept} tensors kept"
        yield f"{self.out}: {counts}, files of weights: {self.num_shards}"
        if self.num_left_behind:
            yield f"left behind: {self.num_left_behind} tensors that the model does not use"
        yield (
            f"size: {self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} MB after (ratio "
            f"{_ratio(self.bytes_before, self.bytes_after):.2f}); FP32 would be "
            f"{_ratio(self.bytes_float32, self.bytes_after):.2f} times as large, the quantised weights alone "
            f"{_ratio(self.quantized_bytes_float32, self.quantized_bytes):.2f} times"
        )
        yield from _worst("relative error of weights", self.weight_errors)
        if self.output_errors is not None:
            errors = self.output_errors
            named = {f"layer {index}": error for index, error in enumerate(errors.layers)}
            title = f"relative error of layer outputs on {errors.num_tokens} tokens of text ({errors.text})"
            yield from _worst(title, named)
            yield f"  logits: {errors.logits:.2%}"
        for remark in self.remarks:
            yield f"note: {remark}"


def _worst(title: str, errors: dict[str, float]) -> Iterator[str]:
    if not errors:
        return
    mean = sum(errors.values()) / len(errors)
    worst = [(name, error) for name, error in sorted(errors.items(), key=lambda item: -item[1])[:NUM_WORST] if error]
    yield f"{title}: {mean:.2%} on average, the largest:" if worst else f"{title}: none"
    for name, error in worst:
        yield f"  {error:.2%}  {name}"


def _ratio(before: int, after: int) -> float:
    return before / after if after else 1.0
