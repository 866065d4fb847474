"""Awaiting the HTTP library so that a cancelled task leaves no connection behind.

httpx closes a connection when it is cancelled while it waits for the peer. At its other awaits (a free lock, a bare
yield, the closing itself) a cancellation loses the connection: its pool counts it as busy for ever (encode/httpx#3782).
So a cancellation is handed on where the library waits for something, and kept back until then elsewhere.
"""

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_OF_ANYIO = ("Cancelled via cancel scope", "Cancelled by cancel scope")
"""How the message of a cancellation begins that comes from anyio, whose scopes see to it themselves."""


class Tidy(Generic[T]):
    """An awaitable in the place of another one.

    Args:
        work: what is awaited.
        undo: undoes a result that came although the task had been cancelled; None where the work is not to be ended
            early at all, such as a closing, which is short.
    """

    def __init__(self, work: Awaitable[T], undo: Callable[[T], Awaitable[object]] | None) -> None:
        self._work = work
        self._undo = undo

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        resume: Callable[[], Any] = partial(next, steps)
        kept = _Kept()
        is_told = self._undo is None
        while True:
            try:
                waits_for = resume()
            except StopIteration as stop:
                result: T = stop.value
                break
            except Exception:
                kept.raise_if_due()
                raise
            resume = partial(next, steps)
            if not is_told and kept.is_due and waits_for is not None and not waits_for.done():
                is_told = True
                waits_for.cancel()
                resume = partial(steps.throw, kept.take())
                continue
            try:
                yield waits_for
            except asyncio.CancelledError as error:
                is_anyio = _is_of_scope(error)
                is_waiting = waits_for is not None and waits_for.cancelled()
                if self._undo is not None and (is_anyio or (is_waiting and not is_told)):
                    is_told = is_told or not is_anyio
                    resume = partial(steps.throw, error)
                else:
                    kept.keep(error)
            except GeneratorExit:
                steps.close()
                raise
        if kept.is_due and self._undo is not None:
            yield from Tidy(self._undo(result), None).__await__()
        kept.raise_if_due()
        return result


def close_later(loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Close from a finaliser, which may run in any thread: hand it to the loop that the response belongs to."""

    def begin() -> None:
        task = loop.create_task(close())
        _closing.add(task)  # a loop does not hold its tasks
        task.add_done_callback(_closing.discard)

    with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
        loop.call_soon_threadsafe(begin)


_closing: set[asyncio.Task[None]] = set()


class _Kept:
    """A cancellation that was kept back. It is void once whoever asked for it has withdrawn it, as timeouts do."""

    def __init__(self) -> None:
        self._error: asyncio.CancelledError | None = None
        self._count = _num_cancels()

    def keep(self, error: asyncio.CancelledError) -> None:
        self._error = self._error or error

    @property
    def is_due(self) -> bool:
        return self._error is not None and _num_cancels() > self._count

    def take(self) -> asyncio.CancelledError:
        error, self._error = self._error, None
        assert error is not None, "only one that is due is taken"
        return error

    def raise_if_due(self) -> None:
        if self.is_due:
            raise self.take()


def _is_of_scope(error: asyncio.CancelledError) -> bool:
    """Whether a scope of anyio around this task is cancelled. A task that gather made has the words only."""
    anyio = sys.modules.get("anyio")
    if anyio is None or not error.args or not str(error.args[0]).startswith(_OF_ANYIO):
        return False
    return anyio.current_effective_deadline() == -math.inf


def _num_cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
