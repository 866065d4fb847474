"""All recordings of one process: found by idempotency key or by request, bounded in bytes and time."""

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from deepseek_gateway.errors import ApiError
from deepseek_gateway.replay.recording import Recording, Terms

Name = tuple[str, str]
"""A key's public id, and what its caller called the request."""

ENTRY_OVERHEAD_BYTES = 1024
"""What an entry counts beside its answer, so that small answers are bounded in number."""


@dataclass(slots=True)
class _Entry:
    recording: Recording
    name: Name | None


class ReplayBook:
    """Recordings of one process.

    Args:
        max_bytes: of all recordings together; the oldest finished ones go first. Those that run may exceed it by what
            their callers have not yet been sent.
        entry_bytes: of one recording.
        ttl_s: seconds that a finished answer with an Idempotency-Key is kept.
        grace_s: seconds that an answer without followers goes on, and that a finished one without a key is kept.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        max_bytes: int,
        entry_bytes: int,
        ttl_s: float,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._entry_bytes = entry_bytes
        self._ttl_s = ttl_s
        self._grace_s = grace_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._ends: list[tuple[float, str]] = []
        self._by_name: dict[Name, str] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def start(
        self, request_id: str, key_id: str, digest: bytes, idempotency_key: str | None, terms: Terms
    ) -> Recording:
        """A recording for a new request."""
        self.expire()
        recording = Recording(
            request_id, key_id, digest, terms, max_bytes=self._entry_bytes, grace_s=self._grace_s, grew=self._grew
        )
        name = None if idempotency_key is None else (key_id, idempotency_key)
        self._entries[request_id] = _Entry(recording, name)
        if name is not None:
            self._by_name[name] = request_id
        self._grew(ENTRY_OVERHEAD_BYTES)
        return recording

    def named(self, key_id: str, idempotency_key: str, digest: bytes) -> Recording | None:
        """The recording of an earlier request with this Idempotency-Key.

        Raises:
            ApiError: 422, that request was another one.
        """
        self.expire()
        request_id = self._by_name.get((key_id, idempotency_key))
        if request_id is None:
            return None
        recording = self._entries[request_id].recording
        if recording.digest != digest:
            raise reused_key(idempotency_key)
        return recording

    def of_request(self, key_id: str, request_id: str) -> Recording | None:
        """The recording of a request of this key's."""
        self.expire()
        entry = self._entries.get(request_id)
        return None if entry is None or entry.recording.key_id != key_id else entry.recording

    def over(self, recording: Recording, *, is_kept: bool) -> None:
        """An exchange ended. What is not kept is forgotten: the next request with its key is a new one."""
        request_id = recording.request_id
        entry = self._entries.get(request_id)
        if entry is None:  # forgotten while it was made
            recording.close()
            return
        if not is_kept:
            self._forget(request_id)
            return
        ttl_s = self._grace_s if entry.name is None else self._ttl_s
        heapq.heappush(self._ends, (self._clock() + ttl_s, request_id))
        self._finished[request_id] = None
        recording.drop_if_too_large()
        self._make_room()

    def forget_keys(self, key_ids: Collection[str]) -> int:
        """Forget all answers of some keys, also those that are being made; gives how many."""
        found = [name for name, entry in self._entries.items() if entry.recording.key_id in key_ids]
        for request_id in found:
            self._entries[request_id].recording.is_forgotten = True
            self._forget(request_id)
        return len(found)

    def expire(self) -> None:
        """Forget what was kept long enough."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            _, request_id = heapq.heappop(self._ends)
            if request_id in self._entries:
                self._forget(request_id)

    def close(self) -> None:
        """Forget everything."""
        for request_id in list(self._entries):
            self._forget(request_id)

    def _grew(self, size: int) -> None:
        self.size += size
        if size > 0 and self.size > self._max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Let finished answers go, the oldest first; then what running ones have sent already."""
        while self.size > self._max_bytes and self._finished:
            self._forget(next(iter(self._finished)))
        if self.size > self._max_bytes:
            for entry in self._entries.values():
                entry.recording.let_go_of_seen()

    def _forget(self, request_id: str) -> None:
        entry = self._entries.pop(request_id)
        self._finished.pop(request_id, None)
        if entry.name is not None and self._by_name.get(entry.name) == request_id:
            del self._by_name[entry.name]
        entry.recording.close()
        self._grew(-ENTRY_OVERHEAD_BYTES)


def reused_key(idempotency_key: str) -> ApiError:
    """The refusal of another request under a key that is taken."""
    message = f"Idempotency-Key={idempotency_key[:40]!r} was used for another request: take a new key for a new request"
    return ApiError(422, message, param="Idempotency-Key", code="idempotency_key_reused")


def lost(what: str) -> ApiError:
    """The refusal where the beginning of an answer is not there any more."""
    return ApiError(409, f"{what}: ask again with another Idempotency-Key", code="replay_lost")
