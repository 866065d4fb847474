"""Usage by any dimension, as a table and as CSV."""

import time
from dataclasses import dataclass, replace

from starlette.responses import Response
from starlette.types import ASGIApp

from deepseek_gateway.usage.lines import csv_of
from deepseek_gateway.usage.question import Dimension, Order, Question, total_of
from deepseek_gateway.web import formats
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import PageError

DAY_S = 86400
DEFAULT_DAYS = 30
SHOWN_LINES = 200
MAX_EXPORTED = 100_000
"""Lines of a CSV: one answer of the store, so that they are of one moment. About 10 MB."""

DIMENSIONS = tuple(Dimension)


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
    def question(self) -> Question:
        """The same for the store; a range that ends before it begins is empty."""
        since, until = formats.parse_day(self.since), formats.parse_day(self.until)
        assert since is not None
        assert until is not None
        by = (self.by,) if self.then in {None, self.by} else (self.by, self.then)
        only = {Dimension.KEY: self.key, Dimension.MODEL: self.model}
        return Question(
            by=tuple(part for part in by if part),
            since=since,
            until=until + DAY_S,
            only=tuple((dimension, value) for dimension, value in only.items() if value),
            order=Order.TOKENS,
        )


async def page(page: Page) -> ASGIApp:
    """The page."""
    form = _form(page)
    question, table = form.question, page.gateway.store.usage
    lines = await page.web.call(table.answer, replace(question, limit=SHOWN_LINES + 1))
    shown = lines[:SHOWN_LINES]
    is_whole = len(shown) == len(lines) and Dimension.TAG not in question.by
    return page.html(
        "usage.html",
        form=form,
        lines=shown,
        has_more=len(lines) > len(shown),
        total=total_of(lines if is_whole else await page.web.call(table.answer, question.together)),
        currency=page.gateway.prices.currency,
        names=await page.web.call(table.names_in, question.by, shown),
        dimensions=DIMENSIONS,
        columns=question.by,
        has_tags=Dimension.TAG in question.by,
        models=page.gateway.pool.known_models(),
    )


async def export(page: Page) -> ASGIApp:
    """The same as CSV: all lines, plain numbers.

    Raises:
        ApiError: 422, these are more than a file of ours holds.
    """
    form = _form(page)
    question = replace(form.question, limit=MAX_EXPORTED + 1)
    lines = await page.web.call(page.gateway.store.usage.answer, question)
    if len(lines) > MAX_EXPORTED:
        raise PageError(422, page.text("usage.too_many", number=f"{MAX_EXPORTED:,}"), code="report_too_large")
    names = await page.web.call(page.gateway.store.usage.names_in, question.by, lines)
    filename = f"usage-{form.since}-{form.until}.csv"
    headers = {"content-disposition": f'attachment; filename="{filename}"'}
    return Response(
        csv_of(question.by, lines, names, page.gateway.prices.currency),
        media_type="text/csv; charset=utf-8",
        headers=headers,
    )


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
