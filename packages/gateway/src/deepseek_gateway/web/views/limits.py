"""Limit rules: list, create, remove; and what soft limits had to say."""

from collections.abc import Sequence

from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError
from deepseek_gateway.limits.drafts import KindName
from deepseek_gateway.limits.rules import Kind, LimitRule
from deepseek_gateway.web.limit_form import SUBJECTS, LimitForm
from deepseek_gateway.web.owners import all_choices, names_of
from deepseek_gateway.web.page import Page

PAGE_SIZE = 100
MAX_EVENTS = 50
KINDS: tuple[str, ...] = KindName.__args__
ZONES = ("UTC", "Asia/Shanghai", "Asia/Tokyo", "Europe/Berlin", "Europe/London", "America/New_York")


async def listing(page: Page) -> ASGIApp:
    """Rules, the newest first, all or those that name a subject; and the newest events."""
    subject = page.query("subject") if page.query("subject") in SUBJECTS else ""
    wanted = page.query("value").strip()
    limits, by = page.gateway.limits, page.principal
    rules = list(reversed(await page.web.call(limits.all, by)))
    if subject:
        rules = await page.web.call(_has_subject, page, rules, subject, wanted)
    text = page.query("from")
    begin = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
    shown = rules[begin : begin + PAGE_SIZE]
    events = await page.web.call(limits.events, by, MAX_EVENTS)
    subjects = [*_subjects(shown), *((name, getattr(event, f"{name}_id")) for event in events for name in SUBJECTS[:4])]
    return page.html(
        "limits.html",
        rules=[(rule, whom(rule)) for rule in shown],
        events=[(event, _of_event(event)) for event in events],
        names=await page.web.call(names_of, page, subjects),
        subject=subject,
        subjects=SUBJECTS,
        value=wanted,
        is_filtered=bool(subject),
        following=begin + PAGE_SIZE if len(rules) > begin + PAGE_SIZE else None,
        is_later=begin > 0,
        units={kind.value: kind.unit for kind in Kind},
        currency=page.gateway.prices.currency,
    )


async def form(page: Page) -> ASGIApp:
    """The form for a new rule."""
    given = LimitForm()
    for name in SUBJECTS:
        setattr(given, name, page.query(name))
    return await _form(page, given, 200)


async def create(page: Page) -> ASGIApp:
    """A new rule."""
    given = LimitForm.read(page)
    draft = await page.web.call(given.draft, page)
    if draft is None:
        return await _form(page, given, 422)
    try:
        await page.web.call(page.gateway.limits.set, page.principal, draft)
    except ApiError as error:
        given.blame(page, error)
        return await _form(page, given, error.status)
    return page.redirect("/ui/limits", done="limit_created")


async def remove(page: Page) -> ASGIApp:
    """Forget a rule."""
    await page.web.call(page.gateway.limits.remove, page.principal, page.params["id"])
    return page.redirect("/ui/limits", done="limit_removed")


def subject_of(rule: LimitRule, name: str) -> str | None:
    """What a rule names as its organisation, team, user, key or model; None: it names none."""
    return getattr(rule, name if name == "model" else f"{name}_id")


def whom(rule: LimitRule) -> list[tuple[str, str]]:
    """Kinds and ids of what a rule names."""
    return [(name, value) for name in SUBJECTS if (value := subject_of(rule, name)) is not None]


def _subjects(rules: Sequence[LimitRule]) -> list[tuple[str, str | None]]:
    return [(name, value) for rule in rules for name, value in whom(rule)]


def _of_event(event: object) -> list[tuple[str, str]]:
    named = [(name, getattr(event, name if name == "model" else f"{name}_id")) for name in SUBJECTS]
    return [(name, value) for name, value in named if value is not None]


def _has_subject(page: Page, rules: Sequence[LimitRule], subject: str, wanted: str) -> list[LimitRule]:
    """Rules that name a subject by this id or name; by any, if none is given. Blocks on the store."""
    named = [rule for rule in rules if subject_of(rule, subject) is not None]
    names = names_of(page, _subjects(named)) if wanted else {}
    return [rule for rule in named if wanted in {"", value := subject_of(rule, subject), names.get(value or "")}]


async def _form(page: Page, given: LimitForm, status: int) -> ASGIApp:
    return page.html(
        "limit_new.html",
        status,
        form=given,
        kinds=KINDS,
        zones=ZONES,
        choices=await page.web.call(all_choices, page),
        models=page.gateway.pool.known_models(),
    )
