"""Word lists: versions, import, activation, policies, and a text to try."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.entries import Entry, Level
from deepseek_gateway.guard.lists import demonstration, write_list
from deepseek_gateway.guard.service import PolicyLevel, PolicyScope, PolicyTarget, WordService
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.words import ListRow, PolicyRow, VersionRow
from deepseek_gateway.web.owners import choices, names_of
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import PageError
from deepseek_gateway.web.word_forms import FORMATS, ImportForm, PolicyForm, TestForm

SCOPES: tuple[str, ...] = get_args(PolicyScope)
LEVELS: tuple[str, ...] = get_args(PolicyLevel)
MAX_SHOWN = 100
MAX_VERSIONS = 50
DEMONSTRATION = "demonstration"


async def listing(page: Page) -> ASGIApp:
    """All lists and policies."""
    return await _listing(page, ImportForm(), 200)


async def take(page: Page) -> ASGIApp:
    """A new version of a list: from the file of the form, or the list that comes with the gateway."""
    words, by = _words(page), page.principal
    if page.value("action") == "demonstration":
        note = page.text("words.demonstration")
        await page.web.call(words.add_version, by, DEMONSTRATION, demonstration(), note=note)
        return page.redirect(f"/ui/words/lists/{DEMONSTRATION}", done="imported")
    given = ImportForm.read(page)
    draft = await page.web.call(given.draft, page)
    if draft is not None:
        try:
            version = await page.web.call(words.import_file, by, given.name, draft)
        except ApiError as error:
            given.blame(page, error)
        else:
            done = "activated" if draft.activate else "imported"
            return page.redirect(f"/ui/words/lists/{version.list}", done=done)
    return await _listing(page, given, 422)


async def detail(page: Page) -> ASGIApp:
    """One list."""
    return await _detail(page, PolicyForm(), 200)


async def activate(page: Page) -> ASGIApp:
    """Put a version in force, or none."""
    name, text = page.params["name"], page.value("version")
    version = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
    await page.web.call(_words(page).activate, page.principal, name, version)
    return page.redirect(f"/ui/words/lists/{name}", done="switched_off" if version is None else "activated")


async def export(page: Page) -> ASGIApp:
    """A version as CSV."""
    name, text = page.params["name"], page.query("version")
    wanted = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
    version, entries = await page.web.call(_words(page).entries, page.principal, name, wanted)
    body = await page.web.call(write_list, entries, "csv")
    headers = {"content-disposition": f'attachment; filename="{name}-{version}.csv"'}
    return Response(body, media_type="text/csv; charset=utf-8", headers=headers)


async def set_policy(page: Page) -> ASGIApp:
    """Say what a list does for a scope."""
    given, name = PolicyForm.read(page), page.params["name"]
    draft = await page.web.call(given.draft, page)
    if draft is not None:
        try:
            await page.web.call(_words(page).set_policy, page.principal, name, draft)
        except ApiError as error:
            given.blame(page, error)
        else:
            return page.redirect(f"/ui/words/lists/{name}", done="policy")
    return await _detail(page, given, 422)


async def drop_policy(page: Page) -> ASGIApp:
    """Say nothing about a list for a scope."""
    name = page.params["name"]
    try:
        target = PolicyTarget.model_validate({"scope": page.value("scope"), "scope_id": page.value("scope_id")})
    except ValidationError:
        raise PageError(422, page.text("error.not_found"), code="not_found") from None
    await page.web.call(_words(page).drop_policy, page.principal, name, target)
    return page.redirect(f"/ui/words/lists/{name}", done="policy")


async def test_form(page: Page) -> ASGIApp:
    """The form to try a text."""
    return await _test(page, TestForm(list=page.query("list")), 200)


async def test(page: Page) -> ASGIApp:
    """What the filter makes of a text."""
    given = TestForm.read(page)
    draft = await page.web.call(given.draft, page)
    if draft is not None:
        try:
            result = await page.web.call(_words(page).test, page.principal, draft)
        except ApiError as error:
            given.blame(page, error)
        else:
            return await _test(page, given, 200, result)
    return await _test(page, given, 422)


def marked(text: str, hits: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """A text in pieces, each with the level that it was hit by, empty for none; of hits that overlap, the first."""
    pieces: list[tuple[str, str]] = []
    at = 0
    for hit in sorted(hits, key=lambda hit: (hit["start"], -hit["end"])):
        if hit["start"] < at:
            continue
        pieces += [(text[at : hit["start"]], ""), (text[hit["start"] : hit["end"]], str(hit["level"]))]
        at = hit["end"]
    return [piece for piece in [*pieces, (text[at:], "")] if piece[0]]


def _words(page: Page) -> WordService:
    return WordService(page.gateway.store)


async def _listing(page: Page, given: ImportForm, status: int) -> ASGIApp:
    words, by = _words(page), page.principal
    lists = await page.web.call(words.lists, by)
    policies = await page.web.call(words.policies, by)
    counts = await page.web.call(words.counts, by)
    return page.html(
        "words.html",
        status,
        form=given,
        lists=lists,
        policies=policies,
        names=await page.web.call(names_of, page, [(row.scope, row.scope_id) for row in policies]),
        waiting=counts["new"],
        failure=page.gateway.words.failure,
        formats=FORMATS,
        levels=[level.value for level in Level],
    )


async def _detail(page: Page, given: PolicyForm, status: int) -> ASGIApp:
    row, versions, shown, entries, policies = await page.web.call(_read, page, page.params["name"])
    levels = Counter(entry.level.value for entry in entries)
    return page.html(
        "word_list.html",
        status,
        row=row,
        versions=versions[:MAX_VERSIONS],
        shown=shown,
        entries=entries[:MAX_SHOWN],
        hidden=max(0, len(entries) - MAX_SHOWN),
        counts=[(level.value, levels[level.value]) for level in Level if levels[level.value]],
        policies=policies,
        names=await page.web.call(names_of, page, [(policy.scope, policy.scope_id) for policy in policies]),
        orgs=await page.web.call(choices, page, OwnerKind.ORG),
        form=given,
        scopes=SCOPES,
        levels=LEVELS,
    )


def _read(page: Page, name: str) -> tuple[ListRow, list[VersionRow], int, list[Entry], list[PolicyRow]]:
    """All about one list, of one version: the active one, else the newest. Blocks on the store."""
    words, by = _words(page), page.principal
    versions = words.versions(by, name)
    row = next(row for row in words.lists(by) if row.name == name)
    shown, entries = words.entries(by, name)
    return row, versions, shown, entries, [each for each in words.policies(by) if each.list == name]


async def _test(page: Page, given: TestForm, status: int, result: dict[str, Any] | None = None) -> ASGIApp:
    lists = await page.web.call(_words(page).lists, page.principal)
    return page.html(
        "words_test.html",
        status,
        form=given,
        lists=lists,
        result=result,
        pieces=[] if result is None else marked(given.text, result["hits"]),
        models=page.gateway.pool.known_models(),
    )
