"""The audit log, and the life of one request."""

from typing import Any, cast

import orjson
from starlette.types import ASGIApp

from deepseek_gateway.audit.chain import Entry
from deepseek_gateway.storage.audit import AuditFilter
from deepseek_gateway.web import formats
from deepseek_gateway.web.page import Page

PAGE_SIZE = 100
DAY_S = 86400


async def listing(page: Page) -> ASGIApp:
    """Administrative acts, the newest first."""
    since, until = formats.parse_day(page.query("since")), formats.parse_day(page.query("until"))
    wanted = AuditFilter(
        actor=page.query("actor") or None,
        action=page.query("action") or None,
        subject=page.query("subject") or None,
        since=since,
        until=None if until is None else until + DAY_S,
    )
    before = page.query("before")
    last = int(before) if before.isascii() and before.isdigit() and len(before) < 16 else None
    audit = page.gateway.store.audit
    entries = await page.web.call(audit.listing, wanted, PAGE_SIZE + 1, last)
    shown = entries[:PAGE_SIZE]
    return page.html(
        "audit.html",
        entries=[(entry, differences(entry)) for entry in shown],
        following=shown[-1].sequence if len(entries) > PAGE_SIZE else None,
        since="" if since is None else formats.day(since),
        until="" if until is None else formats.day(until),
        is_filtered=wanted != AuditFilter() or last is not None,
        is_later=last is not None,
    )


async def verify(page: Page) -> ASGIApp:
    """Check the whole chain, now."""
    count, fault = await page.web.call(page.gateway.store.audit.verify)
    return page.html("audit_verified.html", count=count, fault=fault)


def differences(entry: Entry) -> list[tuple[str, str, str]]:
    """Name, value before and value after of what an act changed."""
    before, after = _fields(entry.before), _fields(entry.after)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [(name, _text(before.get(name)), _text(after.get(name))) for name in names]


def _fields(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    value: Any = orjson.loads(text)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"": value}


def _text(value: object) -> str:
    if value is None:
        return formats.NONE
    return value if isinstance(value, str) else orjson.dumps(value).decode()
