"""The watch over one request's caller and its silences.

A request's task waits either for its engine or for its caller's socket. What may end such a wait early (the caller
left, the engine is silent, the caller does not read, the gateway stops) is decided elsewhere and delivered here, as
asyncio.timeout does it: the task is cancelled, and the cancellation becomes an exception of ours at the wait.
"""

import asyncio
import enum
import time
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from deepseek_gateway.edge.cycle import caller_of

Result = TypeVar("Result")


class Phase(enum.Enum):
    """What a request's task is doing."""

    WORKING = "working"
    READING = "reading"
    SENDING = "sending"


class WatchError(Exception):
    """Base: a wait ended early."""


class CallerGoneError(WatchError):
    """The caller closed its connection."""


class SlowCallerError(WatchError):
    """The caller left its stream unread for too long."""


class QuietError(WatchError):
    """The engine said nothing for a while; waiting on is fine."""


class StoppingError(WatchError):
    """The gateway stops now."""


class RequestWatch:
    """Ends the waits of the task that made it.

    Args:
        receive: where the server says that the caller left.
        keep_alive_s: seconds of waiting for an engine before QuietError.
        send_timeout_s: seconds of waiting for a caller before SlowCallerError.
    """

    def __init__(self, receive: Receive, keep_alive_s: float, send_timeout_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._receive = receive
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._phase = Phase.WORKING
        self.since_s = 0.0
        """When this wait began, or the engine last said something within it: whoever hears that while the task waits on
        sets it."""
        self._ending: WatchError | None = None
        self._thrown: WatchError | None = None
        self._caller = caller_of(receive)
        self._watcher: asyncio.Task[None] | None = None
        if self._caller is None:
            self._watcher = asyncio.create_task(self._watch_caller())
        else:
            self._caller.on_left = self._caller_left
            if self._caller.disconnected:
                self._caller_left()

    def reading(self, wait: Awaitable[Result]) -> Awaitable[Result]:
        """Wait for the engine.

        Raises:
            CallerGoneError, StoppingError, QuietError: the wait ended early; `wait` was cancelled.
        """
        return self._guard(wait, Phase.READING)

    def sending(self, wait: Awaitable[Result]) -> Awaitable[Result]:
        """Wait for the caller.

        Raises:
            CallerGoneError, StoppingError, SlowCallerError: the wait ended early.
        """
        return self._guard(wait, Phase.SENDING)

    def tick(self, now_s: float) -> None:
        """Look at the clock: called for every request a few times in `keep_alive_s`, instead of a timer each."""
        if self._phase is Phase.READING and now_s - self.since_s >= self._keep_alive_s:
            self._interrupt(QuietError())
        elif self._phase is Phase.SENDING and now_s - self.since_s >= self._send_timeout_s:
            self._end(SlowCallerError())

    def stop(self) -> None:
        """End the request: the gateway stops."""
        self._end(StoppingError())

    def cancel(self) -> None:
        """End the task itself, whatever it does: there is no time for more."""
        self._task.cancel()

    def allow_last_words(self) -> None:
        """After StoppingError: let the task tell its caller. What else ends a wait still does."""
        if isinstance(self._ending, StoppingError):
            self._ending = None

    def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._caller is not None:
            self._caller.on_left = None

    async def _watch_caller(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._caller_left()

    def _caller_left(self) -> None:
        self._end(CallerGoneError())

    def _end(self, reason: WatchError) -> None:
        """End this wait, and every later one."""
        if self._ending is None:
            self._ending = reason
            self._interrupt(reason)

    def _interrupt(self, reason: WatchError) -> None:
        if self._phase is not Phase.WORKING and self._thrown is None:
            self._thrown = reason
            self._task.cancel()

    async def _guard(self, wait: Awaitable[Result], phase: Phase) -> Result:
        if self._ending is not None:
            if asyncio.iscoroutine(wait):
                wait.close()
            raise self._ending
        self._phase, self.since_s = phase, time.monotonic()
        try:
            return await wait
        except asyncio.CancelledError:
            thrown, self._thrown = self._thrown, None
            if thrown is None or self._task.uncancel() > 0:
                raise  # somebody else's cancellation
            raise thrown from None
        finally:
            self._phase = Phase.WORKING
            if self._thrown is not None:
                # The wait was over before the cancellation reached it: keep the result; `_ending` speaks next time.
                self._thrown = None
                self._task.uncancel()
