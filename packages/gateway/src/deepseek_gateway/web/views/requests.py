"""Requests one by one: the newest, and the whole life of one."""

from typing import Any

from starlette.types import ASGIApp

from deepseek_gateway.audit.life import Life
from deepseek_gateway.storage.audit import AuditFilter
from deepseek_gateway.storage.lives import OUTCOMES, Outcome
from deepseek_gateway.usage.question import Dimension
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import PageError

PAGE_SIZE = 50


async def listing(page: Page) -> ASGIApp:
    """The newest requests; a request's or caller's own id leads to it."""
    wanted = page.query("id").strip()
    lives, store = page.gateway.store.lives, page.gateway.store
    outcomes: dict[str, Outcome] = {outcome: outcome for outcome in OUTCOMES}
    outcome = outcomes.get(page.query("outcome"))
    if wanted:
        life = await page.web.call(lives.find, wanted)
        if life is not None:
            return page.redirect(f"/ui/requests/{life.request_id}")
        found = await page.web.call(lives.find_by_client, wanted, PAGE_SIZE)
    else:
        key, before = page.query("key") or None, _before(page)
        found = await page.web.call(lives.listing, key, None, before, PAGE_SIZE + 1, outcome=outcome)
    shown = [life.to_json() for life in found[:PAGE_SIZE]]
    key_ids = sorted({life["key_id"] for life in shown if life["key_id"]})
    return page.html(
        "requests.html",
        lives=shown,
        names=await page.web.call(store.usage.names, Dimension.KEY, key_ids),
        outcome=outcome,
        outcomes=OUTCOMES,
        following=repr(found[PAGE_SIZE - 1].created) if len(found) > PAGE_SIZE else None,
        is_later=bool(page.query("before")),
        wanted=wanted,
        currency=page.gateway.prices.currency,
    )


async def detail(page: Page) -> ASGIApp:
    """One request."""
    store = page.gateway.store
    life: Life | None = await page.web.call(store.lives.find, page.params["id"][:100])
    if life is None:
        raise PageError(404, page.text("request.unknown"), code="not_found")
    told: dict[str, Any] = life.to_json()
    acts = await page.web.call(store.audit.listing, AuditFilter(request_id=life.request_id), PAGE_SIZE)
    names = await page.web.call(store.usage.names, Dimension.KEY, [life.key_id] if life.key_id else [])
    return page.html(
        "request.html",
        life=told,
        row=told["ledger"],
        acts=acts,
        key_name=names.get(life.key_id or ""),
        currency=page.gateway.prices.currency,
    )


def _before(page: Page) -> float | None:
    try:
        return float(page.query("before"))
    except ValueError:
        return None
