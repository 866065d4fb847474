"""AdapterDirectory: the API process's view of the core's adapters, and its calls to load and unload them. No torch."""

import asyncio
import re
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

from deepseek_engine.errors import AdapterError, EngineDeadError, QueueFullError, UnknownAdapterError
from deepseek_engine.messages import AdapterInfo, AdapterReply, LoadAdapter, UnloadAdapter

MAX_CALLS: Final = 16
"""Loads and unloads under way at once; each load reads a file of some megabytes."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}")


def check_adapter_name(name: str) -> None:
    """Refuse what cannot be the second half of `model:adapter`.

    Raises:
        AdapterError: it is empty, too long, or has other signs than letters, digits, `.`, `_` and `-`.
    """
    if not _NAME.fullmatch(name):
        raise AdapterError(
            f"lora_name={name[:140]!r}: a name has 1 to 128 letters, digits, '.', '_' or '-', and begins with one of "
            "the first two"
        )


class AdapterDirectory:
    """Adapters by name; belongs to the event loop.

    Args:
        send: passes a message to the core.
        adapters: those that the core has loaded at its start.
    """

    def __init__(
        self, send: Callable[[LoadAdapter | UnloadAdapter], None], adapters: Iterable[AdapterInfo] = ()
    ) -> None:
        self._send = send
        self._loaded = {adapter.name: adapter for adapter in adapters}
        self._calls: dict[int, asyncio.Future[AdapterReply]] = {}
        self._numbers = count()
        self._failure: EngineDeadError | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that a request may name, in the order in which they were loaded."""
        return tuple(self._loaded)

    def check(self, name: str | None) -> None:
        """Raise if a request names an adapter that is not loaded.

        Raises:
            UnknownAdapterError: it does.
        """
        if name is not None and name not in self._loaded:
            raise UnknownAdapterError(f"no adapter {name[:140]!r} is loaded")

    def path_of(self, name: str | None) -> str | None:
        """The folder of a loaded adapter."""
        return None if name is None else self._loaded[name].path

    async def load(self, name: str, path: str, *, replace: bool = False) -> AdapterInfo:
        """Load an adapter from a folder; requests may name it from then on.

        Raises:
            AdapterError: it is no adapter for this model, or the name is bad or taken.
            QueueFullError: too many calls are under way.
            EngineDeadError: the core is gone.
        """
        check_adapter_name(name)
        reply = await self._call(lambda number: LoadAdapter(number, name, path, replace))
        if reply.adapter is None:
            raise AdapterError(reply.error or f"the adapter {name!r} could not be loaded")
        self._loaded[name] = reply.adapter
        return reply.adapter

    async def unload(self, name: str) -> None:
        """Forget an adapter; requests that use it go on to their ends, new ones are refused from now on.

        Raises:
            UnknownAdapterError: nothing of that name is loaded.
            QueueFullError, EngineDeadError: as `load` does.
        """
        self.check(name)
        calling = self._call(lambda number: UnloadAdapter(number, name))
        del self._loaded[name]
        await calling

    def answer(self, replies: Iterable[AdapterReply]) -> None:
        """The core has answered calls."""
        for reply in replies:
            call = self._calls.pop(reply.call_id, None)
            if call is not None and not call.done():
                call.set_result(reply)

    def fail(self, error: EngineDeadError) -> None:
        """The core is gone: end every call."""
        self._failure = error
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
        self._calls.clear()

    def _call(self, message: Callable[[int], LoadAdapter | UnloadAdapter]) -> "asyncio.Future[AdapterReply]":
        if self._failure is not None:
            raise self._failure
        if len(self._calls) >= MAX_CALLS:
            raise QueueFullError(f"{len(self._calls)} adapters are being loaded or unloaded: try again later")
        number = next(self._numbers)
        call = self._calls[number] = asyncio.get_running_loop().create_future()
        self._send(message(number))
        return call
