"""Requests for generation that are in the house: how many, whether one more may come, and when all have left."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from deepseek_gateway.errors import ApiError


class House:
    """Counts a request for as long as `with house:` lasts.

    Args:
        max_requests: the most at a time, as it is now.
    """

    def __init__(self, max_requests: Callable[[], int]) -> None:
        self._max_requests = max_requests
        self._empty = asyncio.Event()
        self._empty.set()
        self.running = 0
        self.is_closing = False
        """Whether nobody may come any more."""

    def __enter__(self) -> None:
        """Let a request in.

        Raises:
            ApiError: 503, the gateway stops or is full.
        """
        if self.is_closing:
            message = "the gateway stops: try again in 5 s"
            raise ApiError(503, message, code="shutting_down", headers={"retry-after": "5", "connection": "close"})
        if self.running >= self._max_requests():
            message = f"{self.running} requests are running, the most this gateway takes: try again in 1 s"
            raise ApiError(503, message, code="overloaded", headers={"retry-after": "1"})
        self.running += 1
        self._empty.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.running -= 1
        if not self.running:
            self._empty.set()

    async def is_empty_within(self, seconds: float) -> bool:
        """Wait until all have left; False when it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
