"""One caller's view of its request: deltas as they come."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from deepseek_engine.errors import EngineDeadError
from deepseek_engine.messages import Delta


class Mailbox:
    """Where the engine puts a request's deltas. What waits in it is bounded by the tokens that the request may have.

    Attributes:
        num_unfinished: answers that have not ended.
        num_prompt_tokens: the prompt's length.
        has_begun: whether the engine has said anything yet.
    """

    def __init__(self, num_answers: int, num_prompt_tokens: int) -> None:
        self.num_unfinished = num_answers
        self.num_prompt_tokens = num_prompt_tokens
        self.has_begun = False
        self._deltas: list[Delta] = []
        self._error: EngineDeadError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._is_closed = False
        self._cancelled: set[int | None] = set()

    @property
    def is_open(self) -> bool:
        """Whether someone still waits for what the engine has to say."""
        return self.num_unfinished > 0 and not self._is_closed and self._error is None

    def note_cancel(self, index: int | None) -> bool:
        """An answer, or all of them, is to be cancelled; False if the engine has been told already."""
        if not self._cancelled.isdisjoint((index, None)):
            return False
        self._cancelled.add(index)
        return True

    def put(self, delta: Delta) -> bool:
        """Add a delta; True if it ends the last answer."""
        self.has_begun = True
        if not self._is_closed:
            self._deltas.append(delta)
            self._wake()
        if delta.finish_reason is not None:
            self.num_unfinished -= 1
        return self.num_unfinished == 0

    def fail(self, error: EngineDeadError) -> None:
        """No more will come; the reader gets what is there, then the error."""
        self._error = error
        self._wake()

    def close(self) -> None:
        """Drop what is there and what comes."""
        self._is_closed = True
        self._deltas.clear()
        self._wake()

    async def take(self) -> list[Delta]:
        """All deltas that have come since the last call, at least one; none at the end.

        Raises:
            EngineDeadError: the core died before the request ended.
        """
        assert self._reader is None, "a stream has one reader"
        while not self._deltas:
            if self._is_closed or self.num_unfinished == 0:
                return []
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        deltas, self._deltas = self._deltas, []
        return deltas

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class RequestStream:
    """Async iterator over the deltas of one request, all of its answers together.

    Each item is a list: everything that has come since the item before, so that a slow reader catches up in one go.
    It ends when every answer has had a finish reason. Closing or dropping it before then cancels the request.
    """

    def __init__(self, request_id: str, mailbox: Mailbox, abandon: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._mailbox = mailbox
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Delta]:
        """The next deltas.

        Raises:
            EngineDeadError: the core died.
        """
        deltas = await self._mailbox.take()
        if not deltas:
            raise StopAsyncIteration
        return deltas

    def close(self) -> None:
        """Cancel the request unless it has ended; the iteration then ends without another item."""
        _close(self._mailbox, self._abandon, self.request_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may run in any thread; mailbox and engine belong to the loop's.
        if self._mailbox.is_open:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the core with it
                self._loop.call_soon_threadsafe(_close, self._mailbox, self._abandon, self.request_id)


def _close(mailbox: Mailbox, abandon: Callable[[str], None], request_id: str) -> None:
    if mailbox.is_open:
        mailbox.close()
        abandon(request_id)
