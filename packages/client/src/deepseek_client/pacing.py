"""When a request may be sent: in its turn among those in flight, and after a failure again, or not.

Limiter: so many requests of one client are in flight at once; the others wait, first come, first served. A request has
its place from before it is sent until its answer is read, or its stream has ended, was closed, or was forgotten.
Threads share one set of places; each event loop has its own, since nothing may wait across loops.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from weakref import WeakKeyDictionary

from deepseek_client.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    DeepSeekError,
    EmptyResponseError,
    StreamTruncatedError,
)

RETRYABLE_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})

_FINAL_CODES = frozenset({"replay_lost", "word_lists_changed"})
"""409 of our gateway: the answer under this Idempotency-Key cannot be had any more."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try again.

    Attributes:
        max_retries: sends after the first.
        base_s: the upper end of the first wait; it doubles with each retry.
        cap_s: the most that a wait without Retry-After grows to.
        max_retry_after_s: a Retry-After beyond this is raised at once, for the caller to plan with.
    """

    max_retries: int = 2
    base_s: float = 0.5
    cap_s: float = 8.0
    max_retry_after_s: float = 60.0


class RetryBudget:
    """What all calls of a client may retry together, so that a failing server is not stormed.

    A retry takes a token; a success gives a tenth of one back. Once they are used up, failures are raised at once.
    Shared by threads without a lock, which a fork could leave held: taking a token out of a deque is one step.

    Args:
        tokens: how many there are at most.
    """

    def __init__(self, tokens: int = 10) -> None:
        self._tokens: deque[None] = deque([None] * tokens, maxlen=tokens)
        self._tenths = 0

    def take(self) -> bool:
        """Use a token; False if there is none."""
        try:
            self._tokens.pop()
        except IndexError:
            return False
        return True

    def give_back(self) -> None:
        """A call has succeeded."""
        self._tenths += 1
        if self._tenths >= 10:
            self._tenths = 0
            self._tokens.append(None)


@dataclass(frozen=True, slots=True)
class Retry:
    """What `on_retry` is told before the wait.

    Attributes:
        error: what the attempt ended with.
        number: of the retry, from 1.
        delay_s: the wait.
    """

    error: DeepSeekError
    number: int
    delay_s: float


def is_retryable(error: DeepSeekError) -> bool:
    """Whether sending the same request again may help and cannot bill a running answer twice.

    A server that accepted the request and stays silent may still be working on it, so of the timeouts only those
    before the request was sent are retried.
    """
    if isinstance(error, APITimeoutError):
        return error.phase in ("connect", "pool")
    if isinstance(error, APIStatusError):
        verdict = error.headers.get("x-should-retry")
        if verdict in ("true", "false"):
            return verdict == "true"
        return error.status_code in RETRYABLE_STATUSES and error.code not in _FINAL_CODES
    return isinstance(error, APIConnectionError | EmptyResponseError | StreamTruncatedError)


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """The wait that a server asked for, in seconds: `retry-after-ms`, or `retry-after` as seconds or as a date.

    Args:
        headers: response headers, names in lower case.
        now_s: seconds since the epoch.

    Returns:
        None without a usable header; a date in the past is 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def retry_delay_s(
    policy: RetryPolicy,
    error: DeepSeekError,
    *,
    retries_taken: int,
    left_s: float | None,
    chance: float,
    is_sure: bool = False,
) -> float | None:
    """How long to wait before the next attempt.

    Args:
        policy: the caller's limits.
        error: what the last attempt ended with.
        retries_taken: how many retries there were before.
        left_s: seconds until the caller's deadline, None if there is none.
        chance: a random number in [0, 1): the wait is spread over the whole range (full jitter), so that clients
            which failed together do not come back together.
        is_sure: another attempt helps, whatever the error.

    Returns:
        seconds, or None if the error is to be raised.
    """
    if retries_taken >= policy.max_retries or not (is_sure or is_retryable(error)):
        return None
    asked = error.retry_after if isinstance(error, APIStatusError) else None
    if asked is None:
        delay = chance * min(policy.cap_s, policy.base_s * 2.0**retries_taken)
    elif asked > policy.max_retry_after_s:
        return None
    else:
        delay = asked
    if left_s is not None and delay >= left_s:
        return None
    return delay


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < 1e9 else None


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
