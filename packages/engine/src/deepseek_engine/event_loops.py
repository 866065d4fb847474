"""Which event loop a program of ours runs on."""

import asyncio
import importlib
import importlib.util
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed; None is asyncio's own."""
    return importlib.import_module("uvloop").new_event_loop if importlib.util.find_spec("uvloop") else None
