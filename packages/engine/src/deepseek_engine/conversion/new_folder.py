"""A folder that appears when it is complete, or not at all."""

import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from deepseek_engine.errors import ConversionError


def check_free(out: Path) -> None:
    """Raise ConversionError if there is something at `out` that would be lost."""
    if out.is_dir() and any(out.iterdir()):
        raise ConversionError(f"{out} is not empty: give another folder, or remove it first")
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out} is a file: give a folder")


@contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """A hidden folder beside `out`, to be filled; at the end it becomes `out`, after an exception it is removed.

    Raises:
        ConversionError: there is something at `out`.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    hidden = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    hidden.mkdir()
    try:
        yield hidden
        if out.exists():
            out.rmdir()  # which fails if something came to lie in it meanwhile
        hidden.rename(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
