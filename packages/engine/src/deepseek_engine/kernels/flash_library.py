"""flash-attn 2, where it is installed, and what is called of it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from deepseek_engine.errors import ModelLoadError

MAJOR_VERSION: Final = "2"
"""Whose functions take block tables as they are called here."""


@dataclass(frozen=True, slots=True)
class FlashLibrary:
    """What is called of the package.

    Attributes:
        version: of the package.
        with_kvcache: `flash_attn_with_kvcache`.
        varlen: `flash_attn_varlen_func`.
    """

    version: str
    with_kvcache: Callable[..., Tensor]
    varlen: Callable[..., Tensor]


def load_flash_attention() -> FlashLibrary:
    """The package, imported.

    Raises:
        ModelLoadError: it is not installed, or another version than 2.
    """
    way_out = "see docs/engine/gpu.md for how to build it, or use attention_backend='triton'"
    try:
        package = importlib.import_module("flash_attn")
    except ImportError as error:
        raise ModelLoadError(
            f"attention_backend='flash' needs the package flash_attn, which cannot be imported ({error}): {way_out}"
        ) from error
    version = str(package.__version__)
    if version.partition(".")[0] != MAJOR_VERSION:
        raise ModelLoadError(
            f"attention_backend='flash' needs flash_attn {MAJOR_VERSION}, and {version} is installed: {way_out}"
        )
    return FlashLibrary(version, package.flash_attn_with_kvcache, package.flash_attn_varlen_func)
