"""Models of the Hugging Face Hub: how they are written, and their download in a process of its own.

huggingface_hub takes half a second to import, which only that process pays, and on Ctrl-C it would first finish the
files under way, where a process can simply end: the next download goes on where it stopped.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from deepseek_engine.errors import ModelLoadError

# As huggingface_hub's own rule for names; a revision is a branch or tag without a slash, a commit, or refs/pr/1.
_NAME: Final = r"\w[\w.-]{0,95}"
_HUB_MODEL: Final = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(@(?P<revision>(refs/\w+/)?[\w.-]+))?(/(?P<file>[^@]+\.gguf))?", re.ASCII
)
_FILE_SUFFIXES: Final = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HubModel(msgspec.Struct, frozen=True):
    """A repository, or one GGUF file of it.

    Attributes:
        repository: organisation and name.
        revision: branch, tag or commit; None is the repository's main branch.
        file: path of a `.gguf` file within; None is a checkpoint of safetensors.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, model: str) -> Self | None:
        """What `org/name`, `org/name@revision`, `org/name/file.gguf` or `org/name@revision/file.gguf` says, else None.

        `dir/model.gguf` is a path, not a repository of that name.
        """
        match = _HUB_MODEL.fullmatch(model)
        if match is None or match["repository"].endswith(_FILE_SUFFIXES) or ".." in model:
            return None
        return cls(match["repository"], match["revision"], match["file"])

    @property
    def display_name(self) -> str:
        """The repository, or the file's name without its suffix."""
        return self.repository if self.file is None else Path(self.file).stem


class DownloadReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a download ended: the folder or file, or what went wrong."""

    path: str | None = None
    error: str | None = None


@dataclass(slots=True)
class HubDownload:
    """A running download, which shows its progress on terminals; as a context manager it ends with the block."""

    model: HubModel
    _process: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls, model: HubModel) -> Self:
        """Start the process."""
        # -P: the working directory is not a place to import modules from. Its stdin is its life line: never written to.
        command = [sys.executable, "-P", "-m", "deepseek_engine.hub_download", msgspec.json.encode(model).decode()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603  our own module
        return cls(model, process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with self._process:
            pass  # closes the pipes and waits

    def wait(self) -> Path:
        """The folder or file in the Hub's local cache, once all of it is there.

        Raises:
            ModelLoadError: it cannot be had; the message says why and what to do.
        """
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        if not answer:
            status = self._process.wait()
            raise ModelLoadError(f"the download of {self.model.repository} ended with status {status}: start it again")
        reply = msgspec.json.decode(answer, type=DownloadReply)
        if reply.path is None:
            raise ModelLoadError(reply.error or "the download failed")
        return Path(reply.path)
