"""The overview: what happened in a range of time, and what happens now."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from deepseek_gateway.money.amounts import NANO
from deepseek_gateway.storage.statistics import Slot, StatisticsTable, percentile
from deepseek_gateway.storage.store import Store
from deepseek_gateway.web import formats
from deepseek_gateway.web.page import Page

STATUSES = ("finished", "cancelled", "failed")
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Range:
    """A choice of how far to look back, in slots of one length."""

    name: str
    slot_s: int
    num_slots: int


RANGES = {
    choice.name: choice
    for choice in (
        Range("1h", 60, 60),
        Range("24h", 1800, 48),
        Range("7d", 3 * 3600, 56),
        Range("30d", 12 * 3600, 60),
    )
}
DEFAULT_RANGE = RANGES["24h"]


@dataclass(frozen=True, slots=True)
class Totals:
    """The figures on top."""

    requests: int
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano: int
    cost: str
    failed: int
    error_rate: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


async def page(page: Page) -> ASGIApp:
    """The page, with its first figures in it."""
    choice = _range(page)
    figures = await _figures(page, choice)
    return page.html("overview.html", range=choice.name, ranges=list(RANGES), figures=figures, live=live_of(page))


async def data(page: Page) -> ASGIApp:
    """The figures of a range, for the script."""
    return JSONResponse(await _figures(page, _range(page)))


async def live(page: Page) -> ASGIApp:
    """What happens now, on this gateway."""
    return JSONResponse(live_of(page))


def figures_of(store: Store, currency: str, choice: Range, now: float) -> dict[str, Any]:
    """Totals, and one list of values for each line of the charts; None where nothing happened."""
    statistics = store.statistics
    last = int(now // choice.slot_s)
    numbers = range(last - choice.num_slots + 1, last + 1)
    since, until = float(numbers[0] * choice.slot_s), float((last + 1) * choice.slot_s)
    slots = statistics.slots(since, until, choice.slot_s)
    latencies = _percentiles(statistics, "latency_ms", since, until, choice.slot_s)
    first_tokens = _percentiles(statistics, "ttft_ms", since, until, choice.slot_s)
    return {
        "times": [number * choice.slot_s for number in numbers],
        "slot_s": choice.slot_s,
        "requests": {status: _line(slots, numbers, status, "requests") for status in STATUSES},
        "tokens": {name: _line(slots, numbers, None, f"{name}_tokens") for name in ("prompt", "cached", "completion")},
        "cost": [nano / NANO for nano in _line(slots, numbers, None, "cost_nano")],
        "currency": currency,
        "latency": {name: [latencies.of(number, share) for number in numbers] for name, share in SHARES.items()},
        "ttft": {name: [first_tokens.of(number, share) for number in numbers] for name, share in SHARES.items()},
        "totals": asdict(_totals(slots, latencies, first_tokens, currency)),
    }


def live_of(page: Page) -> dict[str, Any]:
    """This process's state, from memory."""
    gateway = page.gateway
    figures, models = gateway.figures(), {upstream.name: upstream.models for upstream in gateway.pool.upstreams}
    return {
        "running": gateway.running,
        "pending_rows": gateway.ledger.pending_rows,
        "queued": figures.queued,
        "problem": gateway.not_ready(),
        "upstreams": [{**asdict(one), "models": models.get(one.name, ())} for one in figures.upstreams],
    }


@dataclass(frozen=True, slots=True)
class _Percentiles:
    bins: dict[int, dict[int, int]]

    def of(self, number: int, share: float) -> float | None:
        value = percentile(self.bins.get(number, {}), share)
        return None if value is None else round(value, 1)

    def overall(self, share: float) -> float | None:
        together: dict[int, int] = {}
        for bins in self.bins.values():
            for at, count in bins.items():
                together[at] = together.get(at, 0) + count
        return percentile(together, share)


def _percentiles(statistics: StatisticsTable, column: Any, since: float, until: float, slot_s: int) -> _Percentiles:
    return _Percentiles(statistics.bins(column, since, until, slot_s))


def _line(slots: Iterable[Slot], numbers: range, status: str | None, name: str) -> list[int]:
    values = dict.fromkeys(numbers, 0)
    for slot in slots:
        if slot.number in values and status in {None, slot.status}:
            values[slot.number] += int(getattr(slot, name))
    return list(values.values())


def _totals(slots: list[Slot], latencies: _Percentiles, first_tokens: _Percentiles, currency: str) -> Totals:
    requests = sum(slot.requests for slot in slots)
    failed = sum(slot.requests for slot in slots if slot.status == "failed")
    prompt, completion = sum(slot.prompt_tokens for slot in slots), sum(slot.completion_tokens for slot in slots)
    cost = sum(slot.cost_nano for slot in slots)
    return Totals(
        requests=requests,
        tokens=prompt + completion,
        prompt_tokens=prompt,
        cached_tokens=sum(slot.cached_tokens for slot in slots),
        completion_tokens=completion,
        cost_nano=cost,
        cost=formats.money(cost, currency),
        failed=failed,
        error_rate=failed / requests if requests else None,
        latency_p50_ms=latencies.overall(0.5),
        latency_p95_ms=latencies.overall(0.95),
        ttft_p50_ms=first_tokens.overall(0.5),
        ttft_p95_ms=first_tokens.overall(0.95),
    )


async def _figures(page: Page, choice: Range) -> dict[str, Any]:
    gateway = page.gateway
    return await page.web.call(figures_of, gateway.store, gateway.prices.currency, choice, time.time())


def _range(page: Page) -> Range:
    return RANGES.get(page.query("range"), DEFAULT_RANGE)
