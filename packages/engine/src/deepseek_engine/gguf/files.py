"""A GGUF model as it lies on disk: one file, or the parts that `llama-gguf-split` makes of one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.metadata import GGUFHeader, GGUFValue, read_gguf_header

_PART_NAME: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class GGUFFiles:
    """The metadata, which the first file holds, and every file with its tensors."""

    metadata: Mapping[str, GGUFValue]
    parts: tuple[tuple[Path, GGUFHeader], ...]


def read_gguf_files(path: Path) -> GGUFFiles:
    """Read the headers of the file and of those that it was split into.

    Args:
        path: the file, or the first of several.

    Raises:
        ModelLoadError: a file is broken, missing or not part of this model, or `path` is not the first one.
    """
    first = read_gguf_header(path)
    count = _split_number(first, "split.count", path)
    if count <= 1:
        return GGUFFiles(first.metadata, ((path, first),))
    paths = _part_paths(path, count)
    if path != paths[0] or _split_number(first, "split.no", path) != 0:
        raise ModelLoadError(f"{path} is one of {count} files: give the first one, {paths[0].name}")
    parts = [(path, first)]
    for index, other in enumerate(paths[1:], start=1):
        if not other.is_file():
            raise ModelLoadError(f"{path} is the first of {count} files: {other.name} is missing beside it")
        header = read_gguf_header(other)
        if (_split_number(header, "split.no", other), _split_number(header, "split.count", other)) != (index, count):
            raise ModelLoadError(f"{other} is not file {index + 1} of the {count} of {path.name}: its keys differ")
        parts.append((other, header))
    names = [tensor.name for _, header in parts for tensor in header.tensors]
    if len(set(names)) != len(names):
        raise ModelLoadError(f"{path}: a tensor lies in more than one of the {count} files")
    total = _split_number(first, "split.tensors.count", path, len(names))
    if total != len(names):
        raise ModelLoadError(f"{path}: split.tensors.count={total}, and its {count} files hold {len(names)} tensors")
    return GGUFFiles(first.metadata, tuple(parts))


def split_names(name: str) -> list[str]:
    """What the first of several files and those that go with it are called; the name alone if it is no such file's."""
    match = _PART_NAME.fullmatch(name)
    if match is None or int(match[2]) != 1:
        return [name]
    return [f"{match[1]}-{index:05}-of-{match[3]}{match[4]}" for index in range(1, int(match[3]) + 1)]


def _part_paths(path: Path, count: int) -> list[Path]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise ModelLoadError(
            f"{path} is one of {count} files (split.count): they are to be called as they were written, "
            f"NAME-00001-of-{count:05}.gguf"
        )
    first = f"{match[1]}-00001-of-{match[3]}{match[4]}"
    return [path.with_name(name) for name in split_names(first)]


def _split_number(header: GGUFHeader, key: str, path: Path, default: int = 0) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ModelLoadError(f"{path}: {key} is not a count")
    return value
