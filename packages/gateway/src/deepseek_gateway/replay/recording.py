"""One answer, kept while it is made and for a while after.

The exchange with the engine writes here instead of to a caller's socket; callers follow, each at its own place. The
newest events stay in a ring that is bounded in bytes. An answer that nobody follows goes on for a grace period.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Message

from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.policy import NO_LISTS_VERSION
from deepseek_gateway.relay.stages import split_events
from deepseek_gateway.replay.wish import event_id

AHEAD_BYTES = 64 * 1024
"""What an exchange may be ahead of the fastest of its callers: a slow caller holds its engine back, as without us."""

EVENT_STREAM = b"text/event-stream"
Headers = list[tuple[bytes, bytes]]


class LostError(Exception):
    """What a follower needs has left the ring."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        """Whether events follow."""
        return any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Terms:
    """What an answer was made under: the model that was asked for, and the word lists that judged it."""

    model: str | None = None
    list_version: str = NO_LISTS_VERSION


@dataclass(slots=True, eq=False)
class Follower:
    """A caller's place: the number of the next piece, and bytes that it has been given."""

    position: int
    taken: int
    news: asyncio.Event


class Recording:
    """An answer. `send` and `receive` are what its exchange gets in place of a caller's.

    Args:
        request_id: of the request that made it; part of its events' ids.
        key_id: the only key whose callers may follow.
        digest: of the request's content.
        terms: what it is made under.
        max_bytes: of the ring.
        grace_s: seconds that it goes on without followers.
        grew: told of bytes that are kept, or let go.
    """

    def __init__(
        self,
        request_id: str,
        key_id: str,
        digest: bytes,
        terms: Terms,
        *,
        max_bytes: int,
        grace_s: float,
        grew: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.request_id = request_id
        self.key_id = key_id
        self.digest = digest
        self.terms = terms
        self.head: Head | None = None
        self.failure: ApiError | None = None
        self.is_over = False
        self.is_forgotten = False
        """Whether it may not be kept anywhere, however it ends."""
        self.size = 0
        self._max_bytes = max_bytes
        self._grace_s = grace_s
        self._grew = grew
        self._pieces: deque[bytes] = deque()
        self._first = 0
        self._written = 0
        self._followers: set[Follower] = set()
        self._room = asyncio.Event()
        self._abandoned = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    @property
    def next(self) -> int:
        """The number that the next piece gets."""
        return self._first + len(self._pieces)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is still here."""
        return self._first == 0

    @property
    def is_kept_whole(self) -> bool:
        """Whether all of it is here and small enough to be kept."""
        return self.is_whole and self.size <= self._max_bytes

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody came back within the grace period."""
        return self._abandoned.is_set()

    async def receive(self) -> Message:
        """For the exchange: its caller has left when nobody followed for the grace period."""
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """For the exchange: keep a message, and wait while every follower is far behind."""
        if message["type"] == "http.response.start":
            self.head = Head(message["status"], list(message["headers"]))
        else:
            self._keep(message.get("body", b""))
            if not message.get("more_body", False):
                self.is_over = True
        self._tell()
        while self._followers and not self.is_over and self._ahead() > AHEAD_BYTES:
            self._room.clear()
            await self._room.wait()

    def fail(self, error: ApiError) -> None:
        """For the exchange: it ended without an answer."""
        self.failure, self.is_over = error, True
        self._tell()

    def end(self) -> None:
        """For the exchange: nothing more comes."""
        self.is_over = True
        self._tell()

    def load(self, head: Head, pieces: list[bytes], first: int = 0) -> None:
        """Take over a finished answer of another node's."""
        self.head, self._pieces, self._first, self.is_over = head, deque(pieces), first, True
        self._count(sum(map(len, pieces)))
        self._tell()

    def pieces(self) -> list[bytes]:
        """What is kept."""
        return list(self._pieces)

    def join(self, position: int) -> Follower:
        """Follow from a piece on.

        Raises:
            LostError: it has left the ring, or is not there yet.
        """
        if not self._first <= position <= self.next:
            raise LostError
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        news = asyncio.Event()
        news.set()
        before = sum(len(self._pieces[at]) for at in range(position - self._first))
        follower = Follower(position, self._written - self.size + before, news)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Follow no more. Without followers an answer that is being made has its grace period left."""
        self._followers.discard(follower)
        self._room.set()
        if self._is_closing and not self._followers:
            self.shrink(0)
        if not self._followers and not self.is_over and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._grace_s, self._abandoned.set)

    def go_on(self) -> None:
        """Somebody waits for it elsewhere: the grace period begins again."""
        if self._timer is not None and not self.is_over:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._grace_s, self._abandoned.set)

    async def news(self, follower: Follower) -> None:
        """Wait until there is something that a follower has not seen. May be cancelled."""
        await follower.news.wait()
        if not self.is_over:
            follower.news.clear()

    def take(self, follower: Follower) -> bytes:
        """All that a follower has not seen yet.

        Raises:
            LostError: it was too slow, and the ring has gone on.
        """
        if follower.position < self._first:
            raise LostError
        new = [self._pieces[at] for at in range(follower.position - self._first, len(self._pieces))]
        data = b"".join(new)
        follower.position += len(new)
        follower.taken += len(data)
        self._room.set()
        return data

    def shrink(self, max_bytes: int) -> None:
        """Let the oldest pieces go until no more than so many bytes are kept."""
        while self.size > max_bytes and self._pieces:
            self._drop()

    def let_go_of_seen(self) -> None:
        """Let go what every follower has seen."""
        seen = min((follower.position for follower in self._followers), default=self.next)
        while self._first < seen and self._pieces:
            self._drop()

    def drop_if_too_large(self) -> None:
        """Forget an answer in one piece that is larger than the ring, as soon as nobody follows."""
        if self.size > self._max_bytes:
            self.close()

    def close(self) -> None:
        """Forget all of it, as soon as nobody follows."""
        self._is_closing = True
        if not self._followers:
            self.shrink(0)

    def _keep(self, data: bytes) -> None:
        if self.head is None or not self.head.is_stream:
            self._append(data)
            return
        for event in split_events(data):
            # Signs of life are each follower's own business.
            if not event.startswith((b":", b"event: ping\n")):
                self._append(b"id: " + event_id(self.request_id, self.next) + b"\n" + event)

    def _append(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._written += len(piece)
        self._count(len(piece))
        if self.head is not None and self.head.is_stream:
            self.shrink(max(self._max_bytes, len(piece)))

    def _drop(self) -> None:
        self._count(-len(self._pieces.popleft()))
        self._first += 1

    def _ahead(self) -> int:
        return self._written - max(follower.taken for follower in self._followers)

    def _count(self, size: int) -> None:
        self.size += size
        self._grew(size)

    def _tell(self) -> None:
        for follower in self._followers:
            follower.news.set()
