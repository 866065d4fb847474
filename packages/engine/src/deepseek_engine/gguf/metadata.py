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
_MAX_ARRAY_ENTRIES: Final = 1 << 23
"""The largest vocabularies have some 300 thousand words and as many merges."""
_MAX_STRING_BYTES: Final = 1 << 24
_MAX_ALIGNMENT: Final = 1 << 20
_DEFAULT_ALIGNMENT: Final = 32
_MAX_NAME_IN_MESSAGE: Final = 80
_LENGTH: Final = struct.Struct("<Q")


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
        ModelLoadError: the file cannot be read, is not GGUF 2 or 3, is cut off, or claims what cannot be.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            num_tensors, metadata = reader.read_metadata()
            return GGUFHeader(metadata, reader.read_tensor_table(num_tensors, metadata.get("general.alignment")))
    except (OSError, struct.error, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise ModelLoadError(f"{path} is not a readable GGUF file: {error}") from error


def read_gguf_metadata(path: Path) -> dict[str, GGUFValue]:
    """All keys of the file's header; raises as `read_gguf_header`."""
    return read_gguf_header(path).metadata


class _Reader:
    """A cursor over the file. The counts in a file are not trusted: each read is bounded by what is left of it."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._key = ""

    def read_metadata(self) -> tuple[int, dict[str, GGUFValue]]:
        """The number of tensors, and all keys."""
        if self._take(4) != b"GGUF":
            raise ModelLoadError("it does not begin with 'GGUF'")
        version = self._integer("I")
        if version not in (2, 3):
            is_swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in (2, 3)
            kind = "big-endian files are" if is_swapped else f"version {version} is"
            raise ModelLoadError(f"{kind} not supported: little-endian files of versions 2 and 3 are")
        num_tensors = self._integer("Q")
        num_keys = self._integer("Q")
        if num_keys > _MAX_KEYS:
            raise ModelLoadError(f"its header claims {num_keys} keys: at most {_MAX_KEYS} are read")
        metadata: dict[str, GGUFValue] = {}
        for _ in range(num_keys):
            key = self._key = self._string()
            if key in metadata:
                raise ModelLoadError(f"it has the key {_shown(key)} twice")
            metadata[key] = self._value(self._integer("I"))
        self._key = ""
        return num_tensors, metadata

    def read_tensor_table(self, num_tensors: int, alignment: GGUFValue | None) -> tuple[GGUFTensor, ...]:
        """Every tensor's entry; the data begins at the next multiple of the alignment."""
        if num_tensors > _MAX_TENSORS:
            raise ModelLoadError(f"its header claims {num_tensors} tensors: at most {_MAX_TENSORS} are read")
        step = _DEFAULT_ALIGNMENT if alignment is None else alignment
        if not isinstance(step, int) or not 1 <= step <= _MAX_ALIGNMENT:
            raise ModelLoadError(f"general.alignment is not a whole number from 1 to {_MAX_ALIGNMENT}")
        entries: dict[str, GGUFTensor] = {}
        for _ in range(num_tensors):
            entry = self._tensor_entry()
            if entry.name in entries:
                raise ModelLoadError(f"it has the tensor {_shown(entry.name)} twice")
            entries[entry.name] = entry
        start = -(-self._at // step) * step
        return tuple(GGUFTensor(e.name, e.shape, e.type_id, start + e.offset) for e in entries.values())

    def _tensor_entry(self) -> GGUFTensor:
        """One entry; its offset still counts from the start of the data."""
        name, num_dimensions = self._string(), self._integer("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ModelLoadError(
                f"tensor {_shown(name)} claims {num_dimensions} dimensions: at most {_MAX_DIMENSIONS} are read"
            )
        shape = tuple(reversed([self._integer("Q") for _ in range(num_dimensions)]))
        return GGUFTensor(name, shape, self._integer("I"), self._integer("Q"))

    def _value(self, kind: int, depth: int = 0) -> GGUFValue:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise ModelLoadError(f"the value of key {_shown(self._key)} is of unknown type {kind}")
        return self._scalars(_SCALARS[kind], 1)[0]

    def _array(self, depth: int) -> list[GGUFValue]:
        kind, count = self._integer("I"), self._integer("Q")
        if depth >= _MAX_ARRAY_DEPTH:
            raise ModelLoadError(f"the arrays of key {_shown(self._key)} are nested too deeply")
        if count > min(len(self._data) - self._at, _MAX_ARRAY_ENTRIES):
            raise ModelLoadError(
                f"the array of key {_shown(self._key)} claims {count} entries: at most {_MAX_ARRAY_ENTRIES} are read, "
                f"and {len(self._data) - self._at} bytes are left of the file"
            )
        if kind in _SCALARS:
            return self._scalars(_SCALARS[kind], count)
        return list(self._strings(count)) if kind == _STRING else [self._value(kind, depth + 1) for _ in range(count)]

    def _scalars(self, code: str, count: int) -> list[GGUFValue]:
        return list(struct.unpack(f"<{count}{code}", self._take(struct.calcsize(f"<{code}") * count)))

    def _integer(self, code: str) -> int:
        return int.from_bytes(self._take(struct.calcsize(f"<{code}")), "little")

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """Strings that follow each other. The loop is written out: vocabularies hold hundreds of thousands."""
        data, at, end = self._data, self._at, len(self._data)
        found: list[str] = []
        for _ in range(count):
            start = at + _LENGTH.size
            length = _LENGTH.unpack_from(data, at)[0] if start <= end else end
            at = start + length
            if at > end or length > _MAX_STRING_BYTES:
                raise ModelLoadError(self._cut_off(length, start))
            found.append(data[start:at].decode("utf-8", "replace"))
        self._at = at
        return found

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ModelLoadError(self._cut_off(count, self._at))
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _cut_off(self, wanted: int, at: int) -> str:
        where = f" in the value of key {_shown(self._key)}" if self._key else ""
        return f"it is cut off or broken{where}: {wanted} bytes are claimed at byte {at} of {len(self._data)}"


def _shown(name: str) -> str:
    """A name from the file for a message; it may be anything, of any length."""
    return repr(name if len(name) <= _MAX_NAME_IN_MESSAGE else f"{name[:_MAX_NAME_IN_MESSAGE]}...")
