"""API keys: list, create, show once, rotate, disable, revoke."""

import time

from starlette.types import ASGIApp

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.service import IssuedKey
from deepseek_gateway.errors import ApiError
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.keys import KEY_STATES, KeyFilter, KeyState
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.web.forms import KeyForm
from deepseek_gateway.web.owners import all_choices, names_of
from deepseek_gateway.web.page import Page

PAGE_SIZE = 50
GRACES = {"0": 0.0, "1h": 3600.0, "24h": 86400.0, "7d": 7 * 86400.0}


async def listing(page: Page) -> ASGIApp:
    """Keys, the newest first, a page at a time; an id, or a key's whole text, leads to the key."""
    wanted = page.query("find").strip()
    public_id = wanted.removeprefix("dsk_").partition("_")[0]
    if wanted and await page.web.call(page.gateway.store.keys.find, public_id) is not None:
        return page.redirect(f"/ui/keys/{public_id}")
    states: dict[str, KeyState] = {state: state for state in KEY_STATES}
    chosen = KeyFilter(
        state=states.get(page.query("state")),
        tag=page.query("tag") or None,
        org_id=page.query("org") or None,
        team_id=page.query("team") or None,
        user_id=page.query("user") or None,
        name=wanted or None,
    )
    after = Cursor.parse(page.query("after")) if page.query("after") else None
    keys = page.gateway.keys
    records, following = await page.web.call(
        keys.page, page.principal, chosen, after=after, limit=PAGE_SIZE, newest_first=True
    )
    owners = [(kind.value, getattr(record, kind.field)) for record in records for kind in OwnerKind]
    chosen_owners = [(kind.value, getattr(chosen, kind.field)) for kind in OwnerKind]
    return page.html(
        "keys.html",
        keys=records,
        names=await page.web.call(names_of, page, [*owners, *chosen_owners]),
        chosen_owners=[(kind, owner) for kind, owner in chosen_owners if owner is not None],
        following=following,
        chosen=chosen,
        states=KEY_STATES,
        is_filtered=chosen != KeyFilter() or after is not None,
        is_later=after is not None,
        now=time.time(),
    )


async def form(page: Page) -> ASGIApp:
    """The form for a new key."""
    given = KeyForm(org=page.query("org"), team=page.query("team"), user=page.query("user"))
    return await _form(page, given, 200)


async def create(page: Page) -> ASGIApp:
    """Issue a key and show it, once."""
    given = KeyForm.read(page)
    draft = await page.web.call(given.draft, page)
    if draft is not None:
        try:
            issued = await page.web.call(page.gateway.keys.create, page.principal, draft)
        except ApiError as error:
            given.blame(page, error)
        else:
            return _shown(page, issued, is_new=True)
    return await _form(page, given, 422)


async def detail(page: Page) -> ASGIApp:
    """One key."""
    record = await page.web.call(page.gateway.keys.get, page.principal, page.params["id"])
    owners = await page.web.call(_owners, page, record)
    return page.html("key.html", key=record, owners=owners, now=time.time(), graces=list(GRACES))


async def edit(page: Page) -> ASGIApp:
    """The form for a key that is there."""
    record = await page.web.call(page.gateway.keys.get, page.principal, page.params["id"])
    owners = await page.web.call(_owners, page, record)
    given = KeyForm.of(record, {kind: name for kind, (_, name) in owners.items()})
    return await _form(page, given, 200, record)


async def change(page: Page) -> ASGIApp:
    """Change a key: its name, scopes, limits and rules."""
    record = await page.web.call(page.gateway.keys.get, page.principal, page.params["id"])
    given = KeyForm.read(page)
    changes = await page.web.call(given.changes, page, record)
    if changes is not None:
        try:
            await page.web.call(page.gateway.keys.change, page.principal, record.public_id, changes)
        except ApiError as error:
            given.blame(page, error)
        else:
            return page.redirect(f"/ui/keys/{record.public_id}", done="saved")
    return await _form(page, given, 422, record)


async def rotate(page: Page) -> ASGIApp:
    """Give a key a new secret and show it, once."""
    grace_s = GRACES.get(page.value("grace"), 0.0)
    issued = await page.web.call(page.gateway.keys.rotate, page.principal, page.params["id"], grace_s)
    return _shown(page, issued, is_new=False)


async def disable(page: Page) -> ASGIApp:
    """Let a key rest."""
    return await _set_disabled(page, disabled=True)


async def enable(page: Page) -> ASGIApp:
    """Let a key work again."""
    return await _set_disabled(page, disabled=False)


async def revoke(page: Page) -> ASGIApp:
    """End a key."""
    record = await page.web.call(page.gateway.keys.revoke, page.principal, page.params["id"])
    return page.redirect(f"/ui/keys/{record.public_id}", done="revoked")


def _shown(page: Page, issued: IssuedKey, *, is_new: bool) -> ASGIApp:
    """A key's text, this once, with a command that it may be tried with."""
    record = issued.record
    model = next((model for model in page.gateway.pool.known_models() if record.allows_model(model)), None)
    return page.html("key_shown.html", 201, key=issued.text, record=record, is_new=is_new, model=model)


async def _set_disabled(page: Page, *, disabled: bool) -> ASGIApp:
    change = page.gateway.keys.set_disabled
    record = await page.web.call(change, page.principal, page.params["id"], disabled=disabled)
    return page.redirect(f"/ui/keys/{record.public_id}", done="disabled" if disabled else "enabled")


async def _form(page: Page, given: KeyForm, status: int, record: KeyRecord | None = None) -> ASGIApp:
    choices = await page.web.call(all_choices, page)
    models = page.gateway.pool.known_models()
    return page.html("key_new.html", status, form=given, models=models, choices=choices, record=record)


def _owners(page: Page, record: KeyRecord) -> dict[str, tuple[str, str]]:
    """Id and name of each owner of a key, by kind."""
    found: dict[str, tuple[str, str]] = {}
    for kind in OwnerKind:
        owner_id = getattr(record, kind.field)
        if owner_id is not None:
            owner = page.web.people.get(page.principal, kind, owner_id)
            found[kind.value] = (owner.id, owner.name)
    return found
