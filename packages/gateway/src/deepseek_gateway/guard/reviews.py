"""Hits on their way into the review queue: gathered while requests run, written in batches."""

import hashlib
import hmac
import secrets
import time
from collections import deque
from dataclasses import dataclass

from deepseek_gateway.guard.hits import Hit
from deepseek_gateway.storage.words import ReviewRow, WordTables

MAX_WAITING = 10_000
BATCH = 500


@dataclass(frozen=True, slots=True)
class Watched:
    """The request that is filtered."""

    request_id: str
    key_id: str
    model: str | None


class ReviewQueue:
    """See the module. A flood beyond `MAX_WAITING` is counted and dropped: requests never wait for the queue."""

    def __init__(self, tables: WordTables, pepper: bytes) -> None:
        self._tables = tables
        self._key = hmac.new(pepper, b"word reviews", hashlib.sha256).digest()
        self._waiting: deque[ReviewRow] = deque()
        self.num_dropped = 0

    def add(self, watched: Watched, hit: Hit, direction: str, choice: int, field: str) -> None:
        """Note a hit. Equal words have equal HMACs, so that they can be counted without being kept."""
        if len(self._waiting) >= MAX_WAITING:
            self.num_dropped += 1
            return
        row = ReviewRow(
            id=f"rev-{secrets.token_hex(12)}",
            created=time.time(),
            request_id=watched.request_id,
            key_id=watched.key_id,
            model=watched.model,
            direction=direction,
            field=field[:200],
            choice=choice,
            rule=hit.rule.id,
            category=hit.rule.entry.category,
            level=hit.rule.level.value,
            hit_start=hit.start,
            hit_end=hit.end,
            hit_hmac=hmac.new(self._key, hit.folded.encode("utf-8", "replace"), hashlib.sha256).hexdigest(),
        )
        self._waiting.append(row)

    def flush(self) -> None:
        """Write what waits; blocks on the store. What cannot be written waits on."""
        while self._waiting:
            batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
            self._tables.add_reviews(batch)
            for _ in batch:
                self._waiting.popleft()
