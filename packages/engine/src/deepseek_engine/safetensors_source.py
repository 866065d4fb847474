"""A folder of safetensors as a checkpoint: its files, checked against each other and their index, then read in turn."""

import json
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.name_list import listed
from deepseek_engine.pickled_files import no_safetensors

_INDEX: Final = "model.safetensors.index.json"
_INCOMPLETE: Final = "the download or copy is not complete, so get the folder again"


class _OpenFile(Protocol):
    """What safetensors gives for an open file, which it leaves without types."""

    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> Tensor: ...


class SafetensorsSource:
    """The weights of a folder: those that its index names, else all of its `.safetensors` files.

    Raises:
        ModelLoadError: there are none, a file cannot be read, or files and index contradict each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        weight_map = _read_index(folder / _INDEX)
        self._files = _find_files(folder) if weight_map is None else sorted({*weight_map.values()})
        names = {file: self._names_in(file) for file in self._files}
        self._names = _without_duplicates(folder, names)
        for name, file in (weight_map or {}).items():
            if name not in names[file]:
                lost = {other for other, where in (weight_map or {}).items() if where == file} - names[file]
                raise ModelLoadError(f"{folder / file} lacks {listed(lost)}, which {_INDEX} says it has: {_INCOMPLETE}")

    def names(self) -> set[str]:
        """Names from the files' headers."""
        return self._names

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors, file by file.

        A file is mapped, and what was read of it counts as this process's memory, until the next one is opened and the
        caller has dropped its tensors.
        """
        for file in self._files:
            with self._open(file) as handle:
                for name in handle.keys():  # noqa: SIM118 - not a dict
                    yield name, handle.get_tensor(name)

    def _names_in(self, file: str) -> set[str]:
        with self._open(file) as handle:
            return set(handle.keys())

    @contextmanager
    def _open(self, file: str) -> Generator[_OpenFile]:
        path = self._folder / file
        try:
            with cast("AbstractContextManager[_OpenFile]", safe_open(path, framework="pt")) as handle:
                yield handle
        except FileNotFoundError as error:
            raise ModelLoadError(f"{path} is missing, which {_INDEX} names: {_INCOMPLETE}") from error
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"{path} cannot be read as safetensors: {error}. Perhaps {_INCOMPLETE}") from error


def _find_files(folder: Path) -> list[str]:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(no_safetensors(str(folder), (path.name for path in folder.iterdir())))
    return files


def _read_index(path: Path) -> dict[str, str] | None:
    """Each tensor's file; None if there is no index."""
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON: {error}") from error
    weight_map = cast("dict[str, Any]", index).get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{path} has no weight_map, which says each tensor's file")
    for name, file in cast("dict[str, Any]", weight_map).items():
        # Nothing outside of the folder is opened, whatever a checkpoint says.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelLoadError(f"{path}: {name} is said to be in {file!r}, which is no .safetensors file beside it")
    return cast("dict[str, str]", weight_map)


def _without_duplicates(folder: Path, names: dict[str, set[str]]) -> set[str]:
    files_of: defaultdict[str, list[str]] = defaultdict(list)
    for file, names_in_file in names.items():
        for name in names_in_file:
            files_of[name].append(file)
    twice = {name for name, files in files_of.items() if len(files) > 1}
    if twice:
        files = listed({file for name in twice for file in files_of[name]})
        raise ModelLoadError(
            f"{folder} has {listed(twice)} more than once, in {files}: remove the files that do not belong to it, or "
            f"add a {_INDEX} that names those that do"
        )
    return set(files_of)
