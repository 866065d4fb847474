"""Several readers of one stream, each with every item. What they share is a bounded buffer."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic
from weakref import WeakSet

from deepseek_client.errors import ConfigurationError, DeepSeekError, StreamError
from deepseek_client.readings import ItemT

DEFAULT_TEE_BUFFER = 4096
"""How many items a reader may be ahead of another one."""

_PATIENCE_S = 1.0
"""How long a reader waits for another one to begin."""


class _Branch(Generic[ItemT]):
    """What one reader has yet to read, and who it is: the thread or task that read last."""

    def __init__(self) -> None:
        self.items: deque[ItemT] = deque()
        self.reader: object | None = None


class _Shared(Generic[ItemT]):
    """What the readers of one stream share. A branch that nobody holds any more is not waited for."""

    def __init__(self, buffer: int) -> None:
        if buffer < 1:
            raise ConfigurationError(f"buffer={buffer} must be 1 or more")
        self.buffer = buffer
        self.branches: WeakSet[Any] = WeakSet()
        self.is_over = False
        self.failure: DeepSeekError | None = None

    def add(self, item: ItemT) -> None:
        for branch in self.branches:
            branch.items.append(item)

    def must_wait(self, branch: _Branch[ItemT], *, has_waited: bool) -> bool:
        """Whether a reader is too far ahead of another to go on.

        Raises:
            StreamError: and the other one will not catch up: the same thread or task reads it, or nobody after a wait.
        """
        behind = [other for other in self.branches if other is not branch and len(other.items) >= self.buffer]
        if any(other.reader == branch.reader or (other.reader is None and has_waited) for other in behind):
            self.branches.discard(branch)
            raise StreamError(
                f"one reader of tee is more than buffer={self.buffer} items ahead of another: read each in a thread or "
                "task of its own, or give a larger buffer"
            )
        return bool(behind)

    def check_end(self) -> bool:
        """Whether there is nothing more to come. Raises what the stream ended with."""
        if self.failure is not None:
            raise self.failure
        return self.is_over


class StreamBranch(_Branch[ItemT]):
    """One reader's iterator. Readers may be in threads of their own."""

    def __init__(self, source: Iterator[ItemT], shared: _Shared[ItemT], changed: threading.Condition) -> None:
        super().__init__()
        self._source = source
        self._shared = shared
        self._changed = changed
        shared.branches.add(self)

    def __iter__(self) -> Iterator[ItemT]:
        return self

    def __next__(self) -> ItemT:
        shared, changed = self._shared, self._changed
        with changed:
            self.reader = threading.get_ident()
            has_waited = False
            while not self.items:
                if shared.check_end():
                    raise StopIteration
                if shared.must_wait(self, has_waited=has_waited):
                    has_waited = not changed.wait(_PATIENCE_S)
                else:
                    self._pull()
            changed.notify_all()
            return self.items.popleft()

    def close(self) -> None:
        """Read no more: the others do not wait for this one."""
        with self._changed:
            self._shared.branches.discard(self)
            self._changed.notify_all()

    def _pull(self) -> None:
        """Get the next item for all, holding the lock: whoever else has nothing to read waits for it anyway."""
        try:
            self._shared.add(next(self._source))
        except StopIteration:
            self._shared.is_over = True
        except DeepSeekError as error:
            self._shared.failure = error
        self._changed.notify_all()


class AsyncStreamBranch(_Branch[ItemT]):
    """One reader's iterator. Readers may be tasks of their own."""

    def __init__(self, source: AsyncIterator[ItemT], shared: _Shared[ItemT], lock: asyncio.Condition) -> None:
        super().__init__()
        self._source = source
        self._shared = shared
        self._changed = lock
        shared.branches.add(self)

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        shared, changed = self._shared, self._changed
        async with changed:
            self.reader = asyncio.current_task()
            has_waited = False
            while not self.items:
                if shared.check_end():
                    raise StopAsyncIteration
                if shared.must_wait(self, has_waited=has_waited):
                    has_waited = not await self._has_changed()
                else:
                    await self._pull()
            changed.notify_all()
            return self.items.popleft()

    async def close(self) -> None:
        """Read no more: the others do not wait for this one."""
        async with self._changed:
            self._shared.branches.discard(self)
            self._changed.notify_all()

    async def _has_changed(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._changed.wait()
        except TimeoutError:
            return False

    async def _pull(self) -> None:
        """Get the next item for all, holding the lock: whoever else has nothing to read waits for it anyway."""
        try:
            self._shared.add(await anext(self._source))
        except StopAsyncIteration:
            self._shared.is_over = True
        except DeepSeekError as error:
            self._shared.failure = error
        self._changed.notify_all()


def tee(source: Iterator[ItemT], n: int, buffer: int) -> tuple[StreamBranch[ItemT], ...]:
    """`n` iterators over one."""
    shared, changed = _Shared[ItemT](buffer), threading.Condition()
    return tuple(StreamBranch(source, shared, changed) for _ in range(n))


def tee_async(source: AsyncIterator[ItemT], n: int, buffer: int) -> tuple[AsyncStreamBranch[ItemT], ...]:
    """`n` iterators over one."""
    shared, changed = _Shared[ItemT](buffer), asyncio.Condition()
    return tuple(AsyncStreamBranch(source, shared, changed) for _ in range(n))
