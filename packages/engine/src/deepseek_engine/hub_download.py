"""The process that downloads a model of the Hugging Face Hub: `python -m deepseek_engine.hub_download MODEL`.

MODEL is a `HubModel` as JSON; the answer on stdout is a `DownloadReply`. It ends when its stdin does, so that it does
not outlive the process that started it.
"""

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec
from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,  # pyright: ignore[reportUnknownVariableType] - typed in part
    snapshot_download,  # pyright: ignore[reportUnknownVariableType] - typed in part
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars
from msgspec.structs import replace

from deepseek_engine.gguf.files import split_names
from deepseek_engine.hub import DownloadReply, HubModel
from deepseek_engine.name_list import listed
from deepseek_engine.pickled_files import no_safetensors

_WANTED: Final = ["*.safetensors", "*.json", "*.jinja"]
"""All that is ever read: weights, configuration, tokenizer, chat template. Neither pickles nor code."""
_UNWANTED: Final = ["*/*", "consolidated*.safetensors"]
"""Folders hold other forms of the same model, and so does Mistral's `consolidated.safetensors`."""


def main() -> int:
    """Download what the argument names; the process's exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as an exception it would wait for huggingface_hub's threads
    threading.Thread(target=_end_with_parent, name="life line", daemon=True).start()
    if not sys.stderr.isatty():
        disable_progress_bars()
    # Whatever a library prints belongs on the terminal, not in the answer.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        model = msgspec.json.decode(sys.argv[1], type=HubModel)
        reply = _download(model)
        answer.write(msgspec.json.encode(reply))
    return 0 if reply.error is None else 1


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _download(model: HubModel) -> DownloadReply:
    if model.file is not None:
        return _download_files(model, split_names(model.file))
    try:
        folder = snapshot_download(
            model.repository, revision=model.revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
        if not any(Path(folder).glob("*.safetensors")):
            return DownloadReply(error=_without_safetensors(model))
        return DownloadReply(folder)
    except Exception as error:  # huggingface_hub lets those of its HTTP library and of the system through
        return DownloadReply(error=_explain(model, error))


def _download_files(model: HubModel, names: list[str]) -> DownloadReply:
    """A GGUF file, or all that it was split into; the path is that of the first."""
    first: str | None = None
    for name in names:
        try:
            path = hf_hub_download(model.repository, name, revision=model.revision)
        except Exception as error:  # see above
            return DownloadReply(error=_explain(replace(model, file=name), error))
        first = first or path
    return DownloadReply(first)


def _without_safetensors(model: HubModel) -> str:
    files = HfApi().list_repo_files(model.repository, revision=model.revision)
    gguf = [name for name in files if name.endswith(".gguf")]
    if gguf:
        return (
            f"{model.repository} has no .safetensors file, but GGUF ones: give one of them, as in "
            f"{model.repository}/{gguf[0]}. It has {listed(gguf)}"
        )
    return no_safetensors(model.repository, files)


def _explain(model: HubModel, error: Exception) -> str:
    """What went wrong and the way out, by the kinds of errors that huggingface_hub documents."""
    repository, hub = model.repository, constants.ENDPOINT
    match error:
        case GatedRepoError():
            return (
                f"{repository} is gated: accept its terms at {hub}/{repository}, then set HF_TOKEN to a token of that "
                "account (or run `hf auth login`)"
            )
        case RepositoryNotFoundError():
            return (
                f"{repository} is neither a folder here nor a repository of {hub}, or it is private: check the "
                "spelling, or set HF_TOKEN to a token that may read it"
            )
        case RevisionNotFoundError():
            return f"{repository} has no revision {model.revision!r}: give a branch, a tag or a commit of it"
        case LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return (
                f"{repository} is not whole in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
                "download it: unset that once, set HF_HOME to where the model is, or give a folder"
            )
        case LocalEntryNotFoundError():
            return (
                f"{repository} is not in the cache {constants.HF_HUB_CACHE}, and {hub} cannot be reached "
                f"({_first_line(error.__cause__ or error)}): check the network, or give a folder"
            )
        case EntryNotFoundError() if model.file is not None:
            return f"{repository} has no file {model.file}: see {hub}/{repository}/tree/{model.revision or 'main'}"
        case HfHubHTTPError():
            return f"{hub} refused to give {repository} ({_first_line(error)}): try again later, or give a folder"
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return f"{repository} cannot be stored: {error}. Set HF_HOME to a folder with room for it"
        case _:
            return (
                f"the download of {repository} from {hub} failed ({type(error).__name__}: {_first_line(error)}): "
                "start again, and it goes on where it stopped"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
