"""Responses that are being read, within deadlines, by blocking calls and by asyncio's."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from deepseek_client.effects import Reply
from deepseek_client.errors import Phase
from deepseek_client.middleware import AsyncWatchedBody, WatchedBody
from deepseek_client.tidy import Tidy, close_later
from deepseek_client.transport.library import (
    Answer,
    ReadGuard,
    check_process,
    headers_of,
    late,
    library_errors,
    translate,
)


class Bodies:
    """The responses of one client that are being read.

    They are held here, so that the garbage collector never ends one: the library's own generators would then take the
    pool's lock, wherever the collector happens to run, also in a thread that holds it.
    """

    def __init__(self) -> None:
        self.open: set[SyncBody] = set()
        self.forgotten: deque[Callable[[], None]] = deque()

    def close_forgotten(self) -> None:
        """Let go of those whose streams were forgotten."""
        while self.forgotten:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.forgotten.popleft()()


class SyncBody:
    """A response that is being read."""

    def __init__(self, response: Any, url: str, bodies: Bodies, guard: ReadGuard | None = None) -> None:
        self.status: int = response.status_code
        self.headers = headers_of(response)
        self._response = response
        self._url = url
        self._chunks = (
            response.iter_bytes()
            if "content-encoding" in self.headers or response.is_stream_consumed
            else response.iter_raw()
        )
        stream = response.extensions.get("network_stream")
        sock = stream.get_extra_info("socket") if stream is not None else None
        self._guard = guard or (ReadGuard(sock) if sock is not None else None)
        if guard is not None:
            guard.disarm()
        self._is_reading = False
        self._process = os.getpid()
        self._bodies = bodies
        bodies.open.add(self)
        self.limits: tuple[float | None, Phase] = (None, "total")

    def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        check_process(self._process)
        if deadline is not None and deadline <= time.monotonic():
            raise late(self._url, phase)
        guard = self._guard
        if guard is not None and deadline is not None:
            guard.arm(deadline)
        self._is_reading = True
        try:
            chunk: bytes = next(self._chunks, b"")
        except library_errors() as error:
            if guard is not None and guard.is_expired:
                raise late(self._url, phase) from error
            raise translate(error, self._url, phase) from error
        finally:
            self._is_reading = False
            if guard is not None:
                guard.disarm()
        if not chunk and guard is not None and guard.is_expired:
            raise late(self._url, phase)
        return chunk

    def chunks(self) -> Iterator[bytes]:
        """The body, each read within `limits`."""
        while chunk := self.read(*self.limits):
            yield chunk

    def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, else for good."""
        if self._process != os.getpid():
            return
        if self._guard is not None:
            self._guard.close(cut=self._is_reading)
        if not self._is_reading:  # else the thread that reads sees the cut, and the library closes there
            with contextlib.suppress(*library_errors()):
                self._response.close()
        self._bodies.open.discard(self)

    def abandon(self, close: Callable[[], None] | None = None) -> None:
        """Close from a finaliser, which may run in the midst of anything, such as the pool's own lock.

        So the socket is shut down at once, for the server to see, and the rest is left to the client's next call.

        Args:
            close: what to call then, if it is not the closing of this body alone.
        """
        if self._process != os.getpid():
            return
        if self._guard is None:  # no socket, no pool
            (close or self.close)()
            return
        self._guard.close(cut=True)
        self._bodies.forgotten.append(close or self.close)


def read_reply(body: SyncBody | WatchedBody, answer: Answer, *, is_wanted: bool) -> Reply:
    """The whole body, up to a limit in bytes, and of an error's less."""
    answer.begin(body.status, is_wanted=is_wanted)
    try:
        while chunk := body.read(*answer.limits()):
            if not answer.take(chunk):
                break
    finally:
        body.close()
    return Reply(body.status, body.headers, bytes(answer.content))


class AsyncBody:
    """A response that is being read."""

    def __init__(self, response: Any, url: str) -> None:
        self.status: int = response.status_code
        self.headers = headers_of(response)
        self._response = response
        self._url = url
        self._chunks = (
            response.aiter_bytes()
            if "content-encoding" in self.headers or response.is_stream_consumed
            else response.aiter_raw()
        )
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self.limits: tuple[float | None, Phase] = (None, "total")

    async def read(self, deadline: float | None, phase: Phase) -> bytes:
        """The next bytes, `b""` at the end."""
        check_process(self._process)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise late(self._url, phase)
        try:
            async with asyncio.timeout(left):
                return await Tidy[bytes](anext(self._chunks, b""), lambda _chunk: self._close())
        except TimeoutError as error:
            raise late(self._url, phase) from error
        except library_errors() as error:
            raise translate(error, self._url, phase) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, each read within `limits`."""
        while chunk := await self.read(*self.limits):
            yield chunk

    async def close(self) -> None:
        """Release the connection: to the pool if the body was read to its end, else for good."""
        await Tidy(self._close(), None)

    async def _close(self) -> None:
        with contextlib.suppress(*library_errors()):
            with contextlib.suppress(RuntimeError):  # another task is reading: closing the response ends its read
                await self._chunks.aclose()
            await self._response.aclose()

    def abandon(self) -> None:
        """Close from a finaliser, which may run in any thread."""
        if self._process == os.getpid():
            close_later(self._loop, self.close)


async def read_reply_async(body: AsyncBody | AsyncWatchedBody, answer: Answer, *, is_wanted: bool) -> Reply:
    """The whole body, up to a limit in bytes, and of an error's less."""
    answer.begin(body.status, is_wanted=is_wanted)
    try:
        while chunk := await body.read(*answer.limits()):
            if not answer.take(chunk):
                break
    finally:
        await body.close()
    return Reply(body.status, body.headers, bytes(answer.content))
