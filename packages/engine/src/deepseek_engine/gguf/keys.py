"""The keys of one architecture in a GGUF file, by name and type; what is missing or wrong is an error that names it."""

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.metadata import GGUFValue
from deepseek_engine.model_config.fields import Fields

_REQUIRED: Final[Any] = object()
_MAX_TEXT: Final = 80
"""Longer values have no use here, and errors show them."""


class Keys:
    """Keys are named without the architecture before them: `block_count` is `llama.block_count`."""

    def __init__(self, metadata: Mapping[str, GGUFValue], architecture: str, source: str) -> None:
        self._prefix = f"{architecture}."
        own = {name: _single(value) for name, value in metadata.items() if name.startswith(self._prefix)}
        self._fields = Fields(own, source)
        self._own = own
        self.source = source

    def raw(self, name: str) -> GGUFValue | None:
        """Whatever is there."""
        return self._own.get(self._prefix + name)

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        """A whole number of at least 1."""
        value = self._integer(name, default)
        if value < 1:
            raise self.refused(name, "it is to be at least 1")
        return value

    def size(self, name: str) -> int:
        """A whole number; 0 where there is none."""
        return self._integer(name, 0)

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A finite number above 0."""
        key = self._prefix + name
        value = self._fields.number(key) if default is _REQUIRED else self._fields.number(key, default)
        if not math.isfinite(value) or value <= 0:
            raise self.refused(name, "it is to be a positive number")
        return _shortest(value)

    def numbers_given(self, **names: str) -> dict[str, float]:
        """Field to number, for each field whose key is there and not 0."""
        return {field: self.number(name) for field, name in names.items() if self.raw(name) not in (None, 0)}

    def flag(self, name: str) -> bool:
        """Whether it is there and true."""
        return self._fields.flag(self._prefix + name, default=False)

    def text(self, name: str, default: str) -> str:
        """A string."""
        return self._fields.text(self._prefix + name, default)

    def refused(self, name: str, why: str) -> ModelLoadError:
        """The error for a value that is of the right type and yet wrong."""
        return ModelLoadError(f"{self.source}: {self._prefix}{name}={self.raw(name)!r}: {why}")

    def _integer(self, name: str, default: Any) -> int:
        key = self._prefix + name
        return self._fields.integer(key) if default is _REQUIRED else self._fields.integer(key, default)


def _single(value: GGUFValue) -> GGUFValue:
    """What a list repeats for every layer. Lists of different values become a text, which no reader takes."""
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if not isinstance(value, list):
        return value
    if value and not isinstance(value[0], list) and all(item == value[0] for item in value):
        return value[0]
    return f"(a list of {len(value)} values)"


def _shortest(value: float) -> float:
    """The decimal that a converter rounded to float32: what config.json says, and not 9.99999997e-07 for 1e-06."""
    for digits in range(6, 10):
        decimal = float(f"{value:.{digits}g}")
        if struct.pack("<d", value) == struct.pack("<d", struct.unpack("<f", struct.pack("<f", decimal))[0]):
            return decimal
    return value
