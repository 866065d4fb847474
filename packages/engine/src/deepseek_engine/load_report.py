"""What was loaded, in bytes: by type, which shows whether a quantised model is one, and by part of the model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from torch import nn

_KINDS: Final = (
    ("mtp.", "multi-token prediction"),
    ("norm", "norms"),
    ("router", "routers"),
    (".attention.", "attention"),
    (".experts.", "experts"),
    (".shared.", "shared experts"),
    (".feed_forward.", "feed-forward"),
    ("embedding", "embeddings"),
    ("head.", "head"),
)
"""What a parameter's name has in it, and what it is then; the first that fits."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded.

    Attributes:
        num_tensors: of the checkpoint.
        bytes_by_dtype: in memory, by torch's name of the type; scales are float32.
        bytes_by_kind: the same bytes by part of the model: embeddings, attention, experts and so on.
        seconds_by_part: how long the parts of the start took, on GPUs.
    """

    num_tensors: int
    bytes_by_dtype: Mapping[str, int]
    bytes_by_kind: Mapping[str, int]
    seconds_by_part: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, model: nn.Module, num_tensors: int) -> Self:
        """Add up a model's parameters; one that is used twice counts once."""
        by_dtype: Counter[str] = Counter()
        by_kind: Counter[str] = Counter()
        counted: set[int] = set()
        for name, parameter in model.named_parameters():
            memory = parameter.untyped_storage().data_ptr()
            if memory in counted:  # a rank's rows of an embedding that is the head as well
                continue
            counted.add(memory)
            by_dtype[str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
            by_kind[kind_of(name)] += parameter.nbytes
        return cls(num_tensors, dict(by_dtype.most_common()), dict(by_kind.most_common()))

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return sum(self.bytes_by_dtype.values())

    def __str__(self) -> str:
        return f"{_in_mb(self.bytes_by_dtype)} ({_in_mb(self.bytes_by_kind)})"


def kind_of(name: str) -> str:
    """What part of a model a parameter belongs to, by its name."""
    return next((kind for part, kind in _KINDS if part in name), "other")


def _in_mb(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {num_bytes / 1e6:.1f} MB" for name, num_bytes in sizes.items())
