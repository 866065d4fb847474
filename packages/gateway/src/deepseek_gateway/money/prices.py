"""Prices of models, from a file: dated versions, whole nano-units a token."""

import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.limits.rules import MAX_LIMIT

NanoPerToken = Annotated[int, Field(ge=0, le=10**9, strict=True)]


class PriceEntry(BaseModel):
    """One `[[price]]` of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="a model's name, or the beginning of names with a * after it")
    since: date | datetime = Field(
        date(1970, 1, 1), description="the day (UTC) or moment from which it holds, until a later one of the same model"
    )
    input_cache_hit: NanoPerToken = Field(description="nano-units a prompt token that the prefix cache held")
    input_cache_miss: NanoPerToken = Field(description="nano-units a prompt token that was computed")
    output: NanoPerToken = Field(description="nano-units a token of the answer")
    reasoning: NanoPerToken | None = Field(None, description="nano-units a reasoning token; as output if left out")

    @property
    def since_s(self) -> float:
        """The Unix time from which it holds."""
        since = self.since
        moment = since if isinstance(since, datetime) else datetime(since.year, since.month, since.day, tzinfo=UTC)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


class PriceFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = Field(pattern="^[A-Z]{3}$", description="such as USD or CNY, for all prices and balances")
    price: list[PriceEntry] = []


@dataclass(frozen=True, slots=True)
class Price:
    """What a token costs, in nano-units. `version` is what ledger rows say."""

    version: str
    since_s: float
    input_cache_hit: int
    input_cache_miss: int
    output: int
    reasoning: int

    @property
    def dearest_output(self) -> int:
        """The most that a token of the answer can cost."""
        return max(self.output, self.reasoning)

    @property
    def dearest_input(self) -> int:
        """The most that a token of the prompt can cost."""
        return max(self.input_cache_hit, self.input_cache_miss)

    def cost_nano(self, tokens: TokenCounts) -> int:
        """What an answer costs; never below zero, and never more than can be kept."""
        cached = min(tokens.cached, tokens.prompt)
        reasoning = min(tokens.reasoning, tokens.completion)
        cost = (
            cached * self.input_cache_hit
            + (tokens.prompt - cached) * self.input_cache_miss
            + (tokens.completion - reasoning) * self.output
            + reasoning * self.reasoning
        )
        return max(0, min(cost, MAX_LIMIT))

    def estimate_nano(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The most that so many tokens can cost."""
        return min(prompt_tokens * self.dearest_input + completion_tokens * self.dearest_output, MAX_LIMIT)


class Prices:
    """All prices."""

    def __init__(self, currency: str = "USD", entries: Sequence[PriceEntry] = ()) -> None:
        self.currency = currency
        self.entries = tuple(entries)
        self._exact: dict[str, list[Price]] = defaultdict(list)
        self._prefixes: dict[str, list[Price]] = defaultdict(list)
        for entry in sorted(entries, key=lambda entry: entry.since_s):
            is_prefix = entry.model.endswith("*")
            book = self._prefixes if is_prefix else self._exact
            book[entry.model.removesuffix("*")].append(_price(entry))
        self._by_length = sorted(self._prefixes, key=len, reverse=True)

    def find(self, model: str | None, at_s: float) -> Price | None:
        """The price of a model at a moment: of its name, else of the longest beginning that fits."""
        if model is None:
            return None
        versions = self._exact.get(model)
        if versions is not None and (price := _version_at(versions, at_s)) is not None:
            return price
        for prefix in self._by_length:
            if model.startswith(prefix) and (price := _version_at(self._prefixes[prefix], at_s)) is not None:
                return price
        return None


def load_prices(path: Path | None) -> Prices:
    """The prices of a file; none without one.

    Raises:
        ConfigurationError: the file cannot be read, or does not say prices; the message names the place.
    """
    if path is None:
        return Prices()
    try:
        parsed = PriceFile.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {_place(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None
    seen: set[tuple[str, float]] = set()
    for entry in parsed.price:
        name = entry.model, entry.since_s
        if name in seen:
            raise ConfigurationError(f"{path}: {entry.model} has two prices from {entry.since}")
        seen.add(name)
    return Prices(parsed.currency, parsed.price)


def _price(entry: PriceEntry) -> Price:
    return Price(
        version=f"{entry.model}@{entry.since.isoformat()}",
        since_s=entry.since_s,
        input_cache_hit=entry.input_cache_hit,
        input_cache_miss=entry.input_cache_miss,
        output=entry.output,
        reasoning=entry.output if entry.reasoning is None else entry.reasoning,
    )


def _version_at(versions: list[Price], at_s: float) -> Price | None:
    index = bisect_right(versions, at_s, key=lambda price: price.since_s)
    return versions[index - 1] if index else None


def _place(location: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
