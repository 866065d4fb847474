"""The header of a GGUF file: its key-value metadata and where each tensor lies.

`gguf.GGUFReader` builds a numpy view of each element of each array: 3 s for a 49k-word vocabulary, on every start of
the server and of its core. Reading the header alone takes a tenth of a second.
Source: the GGUF specification (ggml/docs/gguf.md), versions 2 and 3, little-endian.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepseek_engine.errors import ModelLoadError

GGUFValue = bool | int | float | str | list["GGUFValue"]

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_KEYS: Final = 65_536
_MAX_TENSORS: Final = 1_048_576
_MAX_DIMENSIONS: Final = 8
_MAX_ARRAY_DEPTH: Final = 4
_DEFAULT_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's place in the file.

    `shape` is outermost first (the file says innermost first); `offset` counts bytes from the file's start.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """All that comes before the tensors' data."""

    metadata: dict[str, GGUFValue]
    tensors: tuple[GGUFTensor, ...]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Metadata and tensor table of the file.

    Raises:
        ModelLoadError: the file cannot be read, is not GGUF 2 or 3, or is cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            num_tensors, metadata = reader.read_metadata()
            return GGUFHeader(metadata, reader.read_tensor_table(num_tensors, metadata.get("general.alignment")))
    except (OSError, struct.error, ValueError) as error:
        # mmap refuses an empty file with ValueError; ModelLoadError is one too and keeps its own words.
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"{path} is not a readable GGUF file: {error}") from error


def read_gguf_metadata(path: Path) -> dict[str, GGUFValue]:
    """All keys of the file's header; raises as `read_gguf_header`."""
    return read_gguf_header(path).metadata


class _Reader:
    """A cursor over the file. The counts in a file are not trusted: each read is bounded by what is left of it."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read_metadata(self) -> tuple[int, dict[str, GGUFValue]]:
        """The number of tensors, and all keys."""
        if self._take(4) != b"GGUF":
            raise ModelLoadError("not a GGUF file: it does not begin with 'GGUF'")
        version = self._integer("I")
        if version not in (2, 3):
            raise ModelLoadError(f"GGUF version {version} is not supported: versions 2 and 3 are")
        num_tensors = self._integer("Q")
        num_keys = self._integer("Q")
        if num_keys > _MAX_KEYS:
            raise ModelLoadError(f"the GGUF header claims {num_keys} keys: at most {_MAX_KEYS} are read")
        return num_tensors, {self._string(): self._value(self._integer("I")) for _ in range(num_keys)}

    def read_tensor_table(self, num_tensors: int, alignment: GGUFValue | None) -> tuple[GGUFTensor, ...]:
        """Every tensor's entry; the data begins at the next multiple of the alignment."""
        if num_tensors > _MAX_TENSORS:
            raise ModelLoadError(f"the GGUF header claims {num_tensors} tensors: at most {_MAX_TENSORS} are read")
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        step = alignment if isinstance(alignment, int) and alignment > 0 else _DEFAULT_ALIGNMENT
        data_start = -(-self._at // step) * step
        return tuple(GGUFTensor(name, shape, kind, data_start + offset) for name, shape, kind, offset in entries)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dimensions = self._string(), self._integer("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ModelLoadError(f"GGUF tensor {name!r} claims {num_dimensions} dimensions: at most {_MAX_DIMENSIONS}")
        shape = tuple(reversed([self._integer("Q") for _ in range(num_dimensions)]))
        return name, shape, self._integer("I"), self._integer("Q")

    def _value(self, kind: int, depth: int = 0) -> GGUFValue:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise ModelLoadError(f"GGUF value type {kind} is unknown")
        return self._scalars(_SCALARS[kind], 1)[0]

    def _array(self, depth: int) -> list[GGUFValue]:
        kind, count = self._integer("I"), self._integer("Q")
        if kind in _SCALARS:
            return self._scalars(_SCALARS[kind], count)
        if depth >= _MAX_ARRAY_DEPTH:
            raise ModelLoadError("GGUF arrays are nested too deeply")
        if count > len(self._data) - self._at:
            raise ModelLoadError(f"a GGUF array claims {count} entries, more than the file has bytes left")
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _scalars(self, code: str, count: int) -> list[GGUFValue]:
        return list(struct.unpack(f"<{count}{code}", self._take(struct.calcsize(f"<{code}") * count)))

    def _integer(self, code: str) -> int:
        return int.from_bytes(self._take(struct.calcsize(f"<{code}")), "little")

    def _string(self) -> str:
        return self._take(self._integer("Q")).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ModelLoadError(f"the GGUF file is cut off: {count} bytes wanted, {len(self._data) - self._at} left")
        taken = self._data[self._at : end]
        self._at = end
        return taken
