"""Pickled weights are refused: reading a pickle can run any code that its author put there."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

from deepseek_engine.name_list import listed

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def no_safetensors(where: str, files: Iterable[str]) -> str:
    """Says that a folder or repository has no weights that can be loaded, why what it has is refused, and the way out.

    Args:
        where: the folder or repository.
        files: names of what is in it.
    """
    pickled = {name for name in files if PurePath(name).suffix in PICKLE_SUFFIXES}
    if not pickled:
        return f"{where} has no .safetensors file: a checkpoint has its weights in such"
    return f"{where} has no .safetensors file, only {listed(pickled)}: {refusal(where)}"


def refusal(where: str) -> str:
    """Why pickles are not read, and how to convert them.

    Args:
        where: the folder or repository that transformers would load them from.
    """
    program = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({where!r}).save_pretrained('DIR')"
    return (
        "reading pickled weights can run code that is hidden in them, so they are never loaded. Take a release with "
        f'safetensors, or, if you trust its author, convert it: python -c "{program}"'
    )
