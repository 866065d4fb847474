"""Hits on their way into the review queue: gathered while requests run, written in batches."""

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

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


Told = Callable[[str, str], None]
"""Takes a step for the request's trace: a name and a detail without the words."""


class Finding(NamedTuple):
    """What was found: by which rule, from which character to which; equal words have equal `folded` texts."""

    rule: str
    category: str
    level: str
    start: int
    end: int
    folded: str

    @classmethod
    def of(cls, hit: Hit) -> Self:
        """A hit of a word list."""
        rule = hit.rule
        return cls(rule.id, rule.entry.category, rule.level.value, hit.start, hit.end, hit.folded)


class ReviewQueue:
    """See the module. A flood beyond `MAX_WAITING` is counted and dropped: requests never wait for the queue."""

    def __init__(self, tables: WordTables, pepper: bytes) -> None:
        self._tables = tables
        self._key = hmac.new(pepper, b"word reviews", hashlib.sha256).digest()
        self._waiting: deque[ReviewRow] = deque()
        self.num_dropped = 0

    def add(self, watched: Watched, found: Finding, direction: str, choice: int, field: str) -> None:
        """Note a finding. Equal words have equal HMACs, so that they can be counted without being kept."""
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
            rule=found.rule,
            category=found.category,
            level=found.level,
            hit_start=found.start,
            hit_end=found.end,
            hit_hmac=hmac.new(self._key, found.folded.encode("utf-8", "replace"), hashlib.sha256).hexdigest(),
        )
        self._waiting.append(row)

    def flush(self) -> None:
        """Write what waits; blocks on the store. What cannot be written waits on."""
        while self._waiting:
            batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
            self._tables.add_reviews(batch)
            for _ in batch:
                self._waiting.popleft()
