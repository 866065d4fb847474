"""The review queue of the word filter: look at a hit, confirm it, dismiss it, allow the phrase it stood in."""

from typing import cast

from pydantic import ValidationError
from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.policy import rule_place
from deepseek_gateway.guard.service import PhraseDraft, ReviewState, WordService
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.web.owners import names_of
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import fault_of

PAGE_SIZE = 50
STATES: tuple[ReviewState, ...] = ("new", "confirmed", "dismissed")


async def listing(page: Page) -> ASGIApp:
    """Hits in one state, the newest first."""
    words, by = WordService(page.gateway.store), page.principal
    state = cast("ReviewState", page.query("state")) if page.query("state") in STATES else "new"
    after = Cursor.parse(page.query("after")) if page.query("after") else None
    rows, following = await page.web.call(words.reviews, by, state, after, PAGE_SIZE)
    return page.html(
        "review.html",
        rows=rows,
        names=await page.web.call(names_of, page, [("key", row.key_id) for row in rows]),
        following=following,
        is_later=after is not None,
        state=state,
        counts=await page.web.call(words.counts, by),
        states=STATES,
    )


async def detail(page: Page) -> ASGIApp:
    """One hit."""
    return await _detail(page)


async def decide(page: Page) -> ASGIApp:
    """Confirm or dismiss a hit, as the form's button says; with a phrase, allow that too."""
    words, by, review_id = WordService(page.gateway.store), page.principal, page.params["id"]
    note, phrase = page.value("note")[:500], page.value("phrase")
    if page.value("action") == "confirm":
        await page.web.call(words.confirm, by, review_id, note)
        return page.redirect("/ui/review", done="confirmed")
    row = await page.web.call(words.review, by, review_id)
    if phrase and "@" in row.rule:  # what the classifier found is on no list
        try:
            name, _, _ = rule_place(row.rule)
            await page.web.call(words.allow, by, name, PhraseDraft(phrase=phrase, note=note))
        except (ApiError, ValidationError) as error:
            fault = fault_of(page, error)
            return await _detail(page, fault.status, fault.message)
    await page.web.call(words.dismiss, by, review_id, note)
    return page.redirect("/ui/review", done="dismissed")


async def _detail(page: Page, status: int = 200, fault: str = "") -> ASGIApp:
    words, by = WordService(page.gateway.store), page.principal
    row = await page.web.call(words.review, by, page.params["id"])
    entry = await page.web.call(words.rule_of, by, row.rule)
    faults = {"phrase": fault} if fault else {}
    return page.html("review_one.html", status, row=row, entry=entry, faults=faults, phrase=page.value("phrase"))
