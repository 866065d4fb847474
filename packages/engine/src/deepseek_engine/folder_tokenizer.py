"""The tokenizer of a checkpoint folder: `tokenizer.json` and the settings beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers

from deepseek_engine.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """What a folder says about text: the tokenizer and the ids and template that go with it."""

    backend: tokenizers.Tokenizer
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    chat_template: str | None


def build_folder_tokenizer(folder: Path) -> FolderTokenizer:
    """Read the folder.

    Raises:
        ModelLoadError: it has no tokenizer.json, or a file of it is broken.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        if not (folder / "config.json").is_file():
            raise ModelLoadError(
                f"{folder} is not the folder of a model: it has neither config.json nor tokenizer.json"
            )
        raise ModelLoadError(
            f"{folder} has no tokenizer.json: convert the tokenizer with transformers and save it there"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises the bare class
        raise ModelLoadError(f"{path} is not a usable tokenizer: {error}") from error
    settings = _read_json(folder / "tokenizer_config.json")
    bos = _token_content(settings.get("bos_token"))
    return FolderTokenizer(
        backend,
        eos_token_ids=_eos_token_ids(folder, backend, settings),
        bos_token_id=None if bos is None else backend.token_to_id(bos),
        chat_template=_chat_template(folder, settings),
    )


def read_model_type(folder: Path) -> str | None:
    """The `model_type` of the folder's config.json, if it says one.

    Raises:
        ModelLoadError: the file is not JSON.
    """
    model_type = _read_json(folder / "config.json").get("model_type")
    return model_type if isinstance(model_type, str) else None


def _eos_token_ids(folder: Path, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> tuple[int, ...]:
    """Every end token that a file of the checkpoint names: chat models often end turns with one of their own."""
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        ids += [item for item in values if isinstance(item, int)]
    eos = _token_content(settings.get("eos_token"))
    index = None if eos is None else backend.token_to_id(eos)
    return tuple(dict.fromkeys(ids if index is None else [*ids, index]))


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in cast("list[dict[str, Any]]", template)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_content(token: Any) -> str | None:
    """Token settings are a string, or an object with the string in `content`."""
    if isinstance(token, dict):
        token = cast("dict[str, Any]", token).get("content")
    return token if isinstance(token, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
