"""The overview: what happened in a range of time, and what happens now."""

import time
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from deepseek_gateway.web.figures import Range, figures_of
from deepseek_gateway.web.page import Page

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


def live_of(page: Page) -> dict[str, Any]:
    """This process's state, from memory."""
    gateway = page.gateway
    figures, models = gateway.figures(), {upstream.name: upstream.models for upstream in gateway.pool.upstreams}
    return {
        "running": gateway.running,
        "pending_rows": gateway.ledger.pending_rows,
        "queued": figures.queued,
        "problem": gateway.not_ready(),
        "faults": gateway.faults(),
        "upstreams": [{**asdict(one), "models": models.get(one.name, ())} for one in figures.upstreams],
    }


async def _figures(page: Page, choice: Range) -> dict[str, Any]:
    gateway = page.gateway
    return await page.web.call(figures_of, gateway.store, gateway.prices.currency, choice, time.time())


def _range(page: Page) -> Range:
    return RANGES.get(page.query("range"), DEFAULT_RANGE)
