"""Notice that a caller has left while its answer is in the making."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from starlette.types import Receive


class CallerWatch:
    """Watches a connection while the block runs; to be entered after the body was read.

    uvicorn tells of a lost connection through `receive` alone: `send` goes on without an error. It reports a completed
    answer in the same way, so the block has to end, and the watch with it, right after the answer's last `send`.

    Attributes:
        has_left: whether the caller left during the block.
    """

    def __init__(self, receive: Receive, on_leave: Callable[[], None]) -> None:
        self.has_left = False
        self._receive = receive
        self._on_leave = on_leave
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # an empty end of the body may still come
        self.has_left = True
        self._on_leave()
