"""Usage by any dimension, as a table and as CSV."""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp

from deepseek_gateway.money.amounts import money_text
from deepseek_gateway.storage.statistics import Dimension, UsageLine, UsageQuery
from deepseek_gateway.web import formats
from deepseek_gateway.web.page import Page

DAY_S = 86400
DEFAULT_DAYS = 30
SHOWN_LINES = 200
NUMBERS = (
    *("requests", "failed", "prompt_tokens", "cached_tokens"),
    *("completion_tokens", "reasoning_tokens", "total_tokens"),
)
DIMENSIONS = tuple(Dimension)
NAMED = (Dimension.KEY, Dimension.ORG, Dimension.TEAM, Dimension.USER)


@dataclass(frozen=True, slots=True)
class UsageForm:
    """What the page was asked for, as it stands in its URL."""

    since: str
    until: str
    by: Dimension
    then: Dimension | None
    key: str
    model: str

    @property
    def query(self) -> UsageQuery:
        """The same for the store; a range that ends before it begins is empty."""
        since, until = formats.parse_day(self.since), formats.parse_day(self.until)
        assert since is not None
        assert until is not None
        by = (self.by,) if self.then in {None, self.by} else (self.by, self.then)
        return UsageQuery(
            since, until + DAY_S, tuple(part for part in by if part), self.key or None, self.model or None
        )


async def page(page: Page) -> ASGIApp:
    """The page."""
    form = _form(page)
    lines = await page.web.call(page.gateway.store.statistics.breakdown, form.query)
    names = await _names(page, lines, form)
    return page.html(
        "usage.html",
        form=form,
        lines=lines[:SHOWN_LINES],
        hidden=max(0, len(lines) - SHOWN_LINES),
        total=_total(lines),
        currency=page.gateway.prices.currency,
        names=names,
        dimensions=DIMENSIONS,
        columns=form.query.by,
        models=page.gateway.pool.known_models(),
    )


async def export(page: Page) -> ASGIApp:
    """The same as CSV: all lines, plain numbers."""
    form = _form(page)
    lines = await page.web.call(page.gateway.store.statistics.breakdown, form.query)
    names = await _names(page, lines, form)
    filename = f"usage-{form.since}-{form.until}.csv"
    headers = {"content-disposition": f'attachment; filename="{filename}"'}
    return Response(
        csv_of(form.query.by, lines, names, page.gateway.prices.currency),
        media_type="text/csv; charset=utf-8",
        headers=headers,
    )


def csv_of(by: Sequence[Dimension], lines: Sequence[UsageLine], names: dict[str, str], currency: str) -> str:
    """CSV with a header; a key has its id and its name."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    titles = [
        column for part in by for column in ((part.value, f"{part.value}_name") if part in NAMED else (part.value,))
    ]
    writer.writerow([*titles, *NUMBERS, f"cost_{currency.lower()}"])
    for line in lines:
        labels: list[str] = []
        for part, label in zip(by, line.labels, strict=True):
            labels += [label, names.get(label, "")] if part in NAMED else [label]
        writer.writerow(
            [*map(safe_cell, labels), *(getattr(line, name) for name in NUMBERS), money_text(line.cost_nano)]
        )
    return out.getvalue()


def safe_cell(text: str) -> str:
    """A text that spreadsheets take for a text: what could begin a formula is quoted.

    Source: OWASP, "CSV Injection".
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")) else text


def _form(page: Page) -> UsageForm:
    today = formats.day(time.time())
    until = page.query("until") if formats.parse_day(page.query("until")) is not None else today
    first = formats.day(time.time() - (DEFAULT_DAYS - 1) * DAY_S)
    since = page.query("since") if formats.parse_day(page.query("since")) is not None else first
    by, then = page.query("by", "day"), page.query("then")
    return UsageForm(
        since=since,
        until=until,
        by=Dimension(by) if by in DIMENSIONS else Dimension.DAY,
        then=Dimension(then) if then in DIMENSIONS else None,
        key=page.query("key"),
        model=page.query("model"),
    )


async def _names(page: Page, lines: Sequence[UsageLine], form: UsageForm) -> dict[str, str]:
    """Names of the keys and owners in the lines, by id."""
    names: dict[str, str] = {}
    for at, by in enumerate(form.query.by):
        ids = sorted({line.labels[at] for line in lines})
        names.update(await page.web.call(page.gateway.store.statistics.names, by, ids))
    return names


def _total(lines: Sequence[UsageLine]) -> UsageLine:
    return UsageLine(
        labels=(),
        requests=sum(line.requests for line in lines),
        failed=sum(line.failed for line in lines),
        prompt_tokens=sum(line.prompt_tokens for line in lines),
        cached_tokens=sum(line.cached_tokens for line in lines),
        completion_tokens=sum(line.completion_tokens for line in lines),
        reasoning_tokens=sum(line.reasoning_tokens for line in lines),
        cost_nano=sum(line.cost_nano for line in lines),
    )
