"""Organisations, their teams and users: list, create, rename, disable, delete."""

from pydantic import ValidationError
from starlette.types import ASGIApp

from deepseek_gateway.errors import ApiError
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.people.service import OrgDraft, OwnerChanges, TeamDraft, UserChanges, UserDraft
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import PageError, fault_of

PAGE_SIZE = 100
KINDS = {"orgs": OwnerKind.ORG, "teams": OwnerKind.TEAM, "users": OwnerKind.USER}
SECTIONS = {kind: name for name, kind in KINDS.items()}


async def listing(page: Page) -> ASGIApp:
    """All organisations."""
    return await _listing(page)


async def create_org(page: Page) -> ASGIApp:
    """A new organisation."""
    try:
        org = await page.web.call(page.web.people.create_org, page.principal, OrgDraft(name=page.value("name")))
    except (ApiError, ValidationError) as error:
        fault = fault_of(page, error)
        return await _listing(page, fault.status, fault.message)
    return page.redirect(f"/ui/people/{org.id}", done="created")


async def detail(page: Page) -> ASGIApp:
    """One organisation with its teams and users."""
    return await _detail(page)


async def create_member(page: Page) -> ASGIApp:
    """A new team or user of an organisation."""
    org_id, name, kind = page.params["org"], page.value("name"), _kind(page)
    people, by = page.web.people, page.principal
    try:
        if kind is OwnerKind.TEAM:
            await page.web.call(people.create_team, by, TeamDraft(name=name, org_id=org_id))
        else:
            draft = UserDraft(name=name, org_id=org_id, team_id=page.value("team") or None)
            await page.web.call(people.create_user, by, draft)
    except (ApiError, ValidationError) as error:
        fault = fault_of(page, error)
        return await _detail(page, fault.status, {f"{kind.value}-name": fault.message})
    return page.redirect(f"/ui/people/{org_id}", done="created")


async def change(page: Page) -> ASGIApp:
    """Rename, move, disable, enable or delete an organisation, a team or a user, as the form's button says."""
    owner_id, kind, action = page.params["id"], _kind(page), page.value("action")
    people, by, org_id = page.web.people, page.principal, page.params["org"]
    try:
        if action == "delete":
            await page.web.call(people.delete, by, kind, owner_id)
        elif action in {"disable", "enable"}:
            await page.web.call(people.set_disabled, by, kind, owner_id, disabled=action == "disable")
        elif kind is OwnerKind.USER:
            changes = UserChanges(name=page.value("name"), team_id=page.value("team") or None)
            await page.web.call(people.change_user, by, owner_id, changes)
        else:
            await page.web.call(people.rename, by, kind, owner_id, OwnerChanges(name=page.value("name")))
    except (ApiError, ValidationError) as error:
        fault = fault_of(page, error)
        return await _detail(page, fault.status, {owner_id: fault.message})
    done = {"delete": "deleted", "disable": "disabled", "enable": "enabled"}.get(action, "saved")
    is_gone = action == "delete" and kind is OwnerKind.ORG
    return page.redirect("/ui/people" if is_gone else f"/ui/people/{org_id}", done=done)


def _kind(page: Page) -> OwnerKind:
    kind = KINDS.get(page.params.get("kind", ""))
    if kind is None:
        raise PageError(404, page.text("error.not_found"), code="not_found")
    return kind


async def _listing(page: Page, status: int = 200, fault: str = "") -> ASGIApp:
    after = Cursor.parse(page.query("after")) if page.query("after") else None
    people = page.web.people
    orgs, following = await page.web.call(people.page, page.principal, OwnerKind.ORG, after=after, limit=PAGE_SIZE)
    faults = {"name": fault} if fault else {}
    name = page.value("name")
    return page.html("people.html", status, orgs=orgs, following=following, faults=faults, name=name)


async def _detail(page: Page, status: int = 200, faults: dict[str, str] | None = None) -> ASGIApp:
    org_id, people, by = page.params["org"], page.web.people, page.principal
    org = await page.web.call(people.get, by, OwnerKind.ORG, org_id)
    members: dict[str, list[Owner]] = {}
    following: dict[str, Cursor | None] = {}
    for name in ("teams", "users"):
        after = Cursor.parse(page.query(name)) if page.query(name) else None
        found = await page.web.call(people.page, by, KINDS[name], org_id=org_id, after=after, limit=PAGE_SIZE)
        members[name], following[name] = found
    return page.html("org.html", status, org=org, members=members, following=following, faults=faults or {})
