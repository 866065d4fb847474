"""Limiter: how many requests of one client are in flight at once; the others wait, first come, first served.

A request has its place from before it is sent until its answer is read, or its stream has ended, was closed, or was
forgotten. Threads share one set of places; each event loop has its own, since nothing may wait across loops.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from weakref import WeakKeyDictionary


class Place:
    """One request's place among those in flight.

    It is left once, whoever says so first: the end of the answer, `close`, or the garbage collector.

    Args:
        give_back: makes room for another request; called at most once, from any thread.
    """

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = [give_back]

    def leave(self) -> None:
        """Make room. A second call does nothing."""
        with contextlib.suppress(IndexError):
            self._give_back.pop()()  # taking it out is one step, also between threads

    def __del__(self) -> None:
        self.leave()


class Limiter:
    """The places of one client and its `with_options` copies.

    Args:
        most: how many there are: for all threads together, and for each event loop.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._process = os.getpid()
        self._for_threads = self._fill()
        self._for_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPlaces] = WeakKeyDictionary()

    def enter(self, wait_s: float | None) -> Place | None:
        """Wait for a place; None if there is none in time."""
        if self._process != os.getpid():  # a fork has the parent's places taken, and nobody to leave them
            self._process, self._for_threads = os.getpid(), self._fill()
        places = self._for_threads
        try:
            places.get(timeout=wait_s)
        except Empty:
            return None
        return Place(lambda: places.put(None))

    async def enter_async(self, wait_s: float | None) -> Place | None:
        """As `enter`, among the requests of the running event loop."""
        loop = asyncio.get_running_loop()
        places = self._for_loops.get(loop)
        if places is None:
            places = self._for_loops[loop] = _LoopPlaces(self.most)
        try:
            async with asyncio.timeout(wait_s):
                await places.take()
        except TimeoutError:
            return None
        return Place(lambda: _give_back_on(loop, places))

    def _fill(self) -> "SimpleQueue[None]":
        """A queue with an entry for each place: the one lock of the library that a finaliser may use at any moment."""
        places: SimpleQueue[None] = SimpleQueue()
        for _ in range(self.most):
            places.put(None)
        return places


class _LoopPlaces:
    """The places of one event loop, touched by its own thread only."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a place; one who is cancelled has none."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # the place had been handed over when the caller was cancelled
                self.give_back()
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
            raise

    def give_back(self) -> None:
        """Hand a place to who waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _give_back_on(loop: asyncio.AbstractEventLoop, places: _LoopPlaces) -> None:
    """From any thread, and from a finaliser in the midst of anything. A loop that has closed needs no places."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(places.give_back)
