"""GGUF files as checkpoints: their metadata as a ModelConfig, their tensors dequantised under Hugging Face names."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.config import read_gguf_fields
from deepseek_engine.gguf.files import GGUFFiles, read_gguf_files
from deepseek_engine.gguf.metadata import GGUFValue
from deepseek_engine.gguf.sources import ROPE_FREQS, Source, hugging_face_tensors
from deepseek_engine.gguf.stored import StoredTensor, open_tensors
from deepseek_engine.model_config import ModelConfig, parse_model_config
from deepseek_engine.models.names import checkpoint_destinations
from deepseek_engine.models.transformer import Transformer


class GGUFCheckpoint:
    """One `.gguf` file, or the first of several; what it claims is checked before memory is taken for it.

    Attributes:
        fields: those of the config.json that would describe the model.
        config: what they say.
        num_bytes: of the file, or of all its parts.

    Raises:
        ModelLoadError: a file is broken, or the model is not supported; the message names what is wrong.
    """

    def __init__(self, path: Path) -> None:
        files = read_gguf_files(path)
        stored = _open_all(files)
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        self.num_bytes = sum(part.stat().st_size for part, _ in files.parts)
        self.fields = read_gguf_fields(files.metadata, shapes, str(path), _rope_factors(stored, path))
        self.config = parse_model_config(self.fields, str(path))
        try:
            self._sources = hugging_face_tensors(stored, str(files.metadata["general.architecture"]), self.config)
        except ModelLoadError as error:
            raise ModelLoadError(f"{path}: {error}") from error
        _check_shapes(self.config, self._sources, str(path))
        _check_vocabulary(files.metadata, self.config, path)

    def names(self) -> set[str]:
        """Every tensor's Hugging Face name."""
        return set(self._sources)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in float32, one after the other, dequantised on as many threads as torch has at this call."""
        return self._read(torch.get_num_threads())

    def _read(self, num_threads: int) -> Iterator[tuple[str, Tensor]]:
        with ThreadPoolExecutor(num_threads, "gguf") as pool:
            for name, source in self._sources.items():
                yield name, source.values(pool)


def _open_all(files: GGUFFiles) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for path, header in files.parts:
        found |= open_tensors(path, header.tensors)
    return found


def _rope_factors(stored: Mapping[str, StoredTensor], path: Path) -> tuple[float, ...] | None:
    tensor = stored.get(ROPE_FREQS)
    if tensor is None:
        return None
    if len(tensor.shape) != 1:
        raise ModelLoadError(f"{path}: {ROPE_FREQS} has shape {list(tensor.shape)}: it is to have 1 dimension")
    with ThreadPoolExecutor(1) as pool:
        return tuple(cast("list[float]", tensor.values(pool).tolist()))


def _check_shapes(config: ModelConfig, sources: Mapping[str, Source], path: str) -> None:
    """Compare with the model that the metadata describe, built without memory: they may claim any size."""
    try:
        with torch.device("meta"):
            model = Transformer(config, 1, torch.float32)
        wanted = {name: tuple(to.tensor.shape) for name, to in checkpoint_destinations(model, set(sources)).items()}
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ModelLoadError(f"{path}: its metadata describe a model that cannot be: {error}") from error
    for name, shape in wanted.items():
        source = sources.get(name)
        if source is not None and source.shape != shape:
            raise ModelLoadError(f"{path}: {name} has shape {list(source.shape)}: the metadata ask for {list(shape)}")


def _check_vocabulary(metadata: Mapping[str, GGUFValue], config: ModelConfig, path: Path) -> None:
    words = metadata.get("tokenizer.ggml.tokens")
    if isinstance(words, list) and len(words) > config.vocab_size:
        raise ModelLoadError(
            f"{path}: tokenizer.ggml.tokens has {len(words)} words, and token_embd.weight {config.vocab_size} rows"
        )
