"""What a client has used: each answer's price, and the totals of all."""

import threading
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from deepseek_client.prices import PriceTable, as_usage, cache_hits
from deepseek_client.types.usage import Usage


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """The tokens of all answers that said how many they took.

    Attributes:
        requests: how many answers.
        prompt_tokens, completion_tokens: all of theirs; the output's include reasoning.
        cache_hit_tokens: of the prompts', those that were in the server's cache.
        reasoning_tokens: of the outputs', those of reasoning.
        cost: the price of the answers whose price is known, in the price table's currency.
        saved: what the cache has saved of it.
        unpriced_requests: answers whose price is not known.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_hit_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal = field(default_factory=Decimal)
    saved: Decimal = field(default_factory=Decimal)
    unpriced_requests: int = 0

    @property
    def total_tokens(self) -> int:
        """Of prompts and outputs together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cache_hit_ratio(self) -> float | None:
        """The part of the prompts that was in the cache; None before the first prompt."""
        return self.cache_hit_tokens / self.prompt_tokens if self.prompt_tokens else None

    def plus(self, usage: Usage, cost: Decimal | None, saved: Decimal | None) -> "UsageTotals":
        """With one more answer."""
        details = usage.completion_tokens_details
        return replace(
            self,
            requests=self.requests + 1,
            prompt_tokens=self.prompt_tokens + usage.prompt_tokens,
            completion_tokens=self.completion_tokens + usage.completion_tokens,
            cache_hit_tokens=self.cache_hit_tokens + cache_hits(usage),
            reasoning_tokens=self.reasoning_tokens + (details.reasoning_tokens if details is not None else 0),
            cost=self.cost + (cost or 0),
            saved=self.saved + (saved or 0),
            unpriced_requests=self.unpriced_requests + (cost is None),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer to be counted.

    Attributes:
        usage: its token counts.
        model: the name that was sent, else the one that the answer names.
        created: when the server says that it began, in seconds since the epoch; None is now.
    """

    usage: Usage
    model: str
    created: float | None


class Ledger:
    """Counts the answers of one client and its `with_options` copies. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = UsageTotals()

    @property
    def totals(self) -> UsageTotals:
        """As of now."""
        return self._totals

    def enter(self, entry: Entry, prices: PriceTable | None) -> Decimal | None:
        """Count an answer; its price, None where it is not known."""
        rates = prices.rates(entry.model, entry.created) if prices is not None else None
        price = rates.cost(entry.usage) if rates is not None else None
        with self._lock:
            self._totals = self._totals.plus(
                entry.usage, price, rates.saved(entry.usage) if rates is not None else None
            )
        return price


def entry_of(answer: object, asked: str | None) -> Entry | None:
    """What is to be counted of an answer; None if it says no token counts."""
    usage: Any = getattr(answer, "usage", None)
    if usage is None:
        return None
    created = getattr(answer, "created", None) or getattr(answer, "created_at", None) or None
    return Entry(as_usage(usage), asked or getattr(answer, "model", ""), created)
