"""Organisations, teams, users and keys as people write and read them: by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deepseek_gateway.errors import ApiError
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.usage.question import Dimension
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import fault_of

EACH = "*"

DIMENSIONS = {
    "org": Dimension.ORG,
    "team": Dimension.TEAM,
    "user": Dimension.USER,
    "key": Dimension.KEY,
}


@dataclass(slots=True)
class FoundOwners:
    """What a form's names stand for, by kind, and what is wrong with the others."""

    ids: dict[OwnerKind, str] = field(default_factory=dict[OwnerKind, str])
    faults: dict[str, str] = field(default_factory=dict[str, str])


def find_owners(page: Page, written: Mapping[str, str], *, takes_each: bool = False) -> FoundOwners:
    """The owners that are named by id or name; a team's or user's name is looked up in the organisation.

    A `*` stays what it is if that is taken. Blocks on the store.
    """
    found = FoundOwners()
    for kind in OwnerKind:
        reference = written.get(kind.value, "")
        if not reference:
            continue
        if takes_each and reference == EACH:
            found.ids[kind] = EACH
            continue
        within = found.ids.get(OwnerKind.ORG)
        try:
            owner = page.web.people.find(page.principal, kind, reference, None if within == EACH else within)
        except ApiError as error:
            key = f"fault.{kind.value}"
            found.faults[kind.value] = page.text(key) if page.messages.has(key) else fault_of(page, error).message
        else:
            found.ids[kind] = owner.id
    return found


def choices(page: Page, kind: OwnerKind) -> list[str]:
    """Names to choose from; where there are more, the rest can be written. Blocks on the store."""
    owners, _ = page.web.people.page(page.principal, kind, limit=100)
    return [owner.name for owner in owners]


def all_choices(page: Page) -> dict[str, list[str]]:
    """Names of every kind. Blocks on the store."""
    return {kind.value: choices(page, kind) for kind in OwnerKind}


def names_of(page: Page, ids: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Names by id, of kinds and ids; what is not there any more has none. Blocks on the store."""
    wanted: dict[str, set[str]] = {}
    for kind, owner_id in ids:
        if owner_id is not None and owner_id != EACH and kind in DIMENSIONS:
            wanted.setdefault(kind, set()).add(owner_id)
    names: dict[str, str] = {}
    for kind, found in wanted.items():
        names.update(page.gateway.store.usage.names(DIMENSIONS[kind], sorted(found)))
    return names
