"""Tensors to a folder of safetensors, a shard at a time: no more than a shard is ever in memory."""

import json
from pathlib import Path
from typing import Final

from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - typed in part
from torch import Tensor

INDEX_NAME: Final = "model.safetensors.index.json"


class ShardWriter:
    """Writes shards as they fill, and names them once their number is known.

    Args:
        folder: where to.
        max_bytes: of a shard's tensors; a single tensor beyond it gets a shard of its own.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self.num_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor, which may not change until the shard is written."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._max_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes
        self.num_bytes += tensor.nbytes

    def finish(self) -> list[Path]:
        """Write what is left, name the shards and write their index; the shards' files."""
        self._flush()
        count = len(self._shards)
        names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        if count == 1:  # then readers look for one file, without an index
            names = ["model.safetensors"]
        paths = [self._unnamed(index).rename(self._folder / name) for index, name in enumerate(names)]
        if count > 1:
            weight_map = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return paths

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._unnamed(len(self._shards))
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(self._folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner may read
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _unnamed(self, index: int) -> Path:
        return self._folder / f"unnamed-{index:05}.safetensors"
