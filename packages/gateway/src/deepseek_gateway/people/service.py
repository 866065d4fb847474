"""Administration of organisations, teams and users: the rules, whatever the way in."""

import time
from dataclasses import dataclass

from pydantic import Field

from deepseek_gateway.auth.acts import Act, record_act
from deepseek_gateway.auth.fields import Draft, Id, Name
from deepseek_gateway.auth.keys import random_base62
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError, StoreConflictError
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.storage.store import Store


class OrgDraft(Draft):
    """A new organisation."""

    name: Name


class TeamDraft(Draft):
    """A new team; `org_id` may be left out by who administers one organisation only."""

    name: Name
    org_id: Id | None = None


class UserDraft(Draft):
    """A new user; `org_id` may be left out where the team gives it, as with teams."""

    name: Name
    org_id: Id | None = None
    team_id: Id | None = None


class OwnerChanges(Draft):
    """A new name."""

    name: Name


class UserChanges(Draft):
    """What to change of a user; what is left out stays. `team_id` null takes the user out of its team."""

    name: Name = Field(default_factory=str)
    team_id: Id | None = None


@dataclass(frozen=True, slots=True)
class PeopleService:
    """Owners of keys in one store. Calls block on the store.

    Every method takes who asks first, and raises ApiError: 403, it may not; 404, it cannot see such an owner; 409, a
    name is taken or an owner is in use; 422, a field is wrong.
    """

    store: Store

    @atomic
    def create_org(self, by: Principal, draft: OrgDraft) -> Owner:
        """A new organisation."""
        by.require(Scope.ADMIN_WRITE)
        by.require_everything()
        return self._insert(by, Owner(OwnerKind.ORG, _new_id(OwnerKind.ORG), draft.name, time.time()))

    @atomic
    def create_team(self, by: Principal, draft: TeamDraft) -> Owner:
        """A new team."""
        by.require(Scope.ADMIN_WRITE)
        org_id = self._organisation(by, draft.org_id)
        return self._insert(by, Owner(OwnerKind.TEAM, _new_id(OwnerKind.TEAM), draft.name, time.time(), None, org_id))

    @atomic
    def create_user(self, by: Principal, draft: UserDraft) -> Owner:
        """A new user."""
        by.require(Scope.ADMIN_WRITE)
        team = None if draft.team_id is None else self.owner_of(by, OwnerKind.TEAM, draft.team_id)
        org_id = self._organisation(by, draft.org_id or (team.org_id if team else None))
        _check_same(team, org_id)
        user_id = _new_id(OwnerKind.USER)
        user = Owner(OwnerKind.USER, user_id, draft.name, time.time(), None, org_id, draft.team_id)
        return self._insert(by, user)

    def get(self, by: Principal, kind: OwnerKind, owner_id: str) -> Owner:
        """One owner."""
        by.require(Scope.ADMIN_READ)
        return self._visible(by, kind, owner_id)

    def find(self, by: Principal, kind: OwnerKind, reference: str, org_id: str | None = None) -> Owner:
        """One owner by its id, or by its name; a team's or user's name is looked up in its organisation."""
        by.require(Scope.ADMIN_READ)
        owner = self.store.people.find(kind, reference) or self.store.people.find_named(kind, reference, org_id)
        if owner is None or not by.sees(owner.organisation):
            hint = "" if kind is OwnerKind.ORG or org_id is not None else "; names need their organisation"
            raise ApiError(404, f"there is no {kind.noun} {reference[:100]!r}{hint}", code="not_found")
        return owner

    def page(
        self, by: Principal, kind: OwnerKind, *, org_id: str | None = None, after: Cursor | None = None, limit: int = 50
    ) -> tuple[list[Owner], Cursor | None]:
        """Owners, the oldest first, and where the next page begins."""
        by.require(Scope.ADMIN_READ)
        if not by.sees(org_id):
            if org_id is not None:
                raise _unknown(OwnerKind.ORG, org_id, "org_id")
            org_id = by.org_id
        found = self.store.people.page(kind, org_id, after, limit + 1)
        more = len(found) > limit
        return found[:limit], Cursor(found[limit - 1].created, found[limit - 1].id) if more else None

    @atomic
    def rename(self, by: Principal, kind: OwnerKind, owner_id: str, changes: OwnerChanges) -> Owner:
        """Another name."""
        before = self._changeable(by, kind, owner_id)
        return self._change(by, before, "rename", {"name": changes.name})

    @atomic
    def change_user(self, by: Principal, user_id: str, changes: UserChanges) -> Owner:
        """Another name or team."""
        before = self._changeable(by, OwnerKind.USER, user_id)
        if "team_id" in changes.model_fields_set and changes.team_id is not None:
            _check_same(self.owner_of(by, OwnerKind.TEAM, changes.team_id), before.org_id)
        wanted = changes.model_dump(include=changes.model_fields_set)
        return self._change(by, before, "change", wanted) if wanted else before

    @atomic
    def set_disabled(self, by: Principal, kind: OwnerKind, owner_id: str, *, disabled: bool) -> Owner:
        """Stop every key of an owner within 5 seconds, or let them work again."""
        before = self._changeable(by, kind, owner_id)
        if (before.disabled is not None) is disabled:
            return before
        action = "disable" if disabled else "enable"
        return self._change(by, before, action, {"disabled": time.time() if disabled else None})

    @atomic
    def delete(self, by: Principal, kind: OwnerKind, owner_id: str) -> Owner:
        """Delete an owner that has nothing: no team, no user and no key, not even a revoked one."""
        before = self._changeable(by, kind, owner_id)
        try:
            is_deleted = self.store.people.delete_unused(kind, owner_id)
        except StoreConflictError:  # something came to refer to it in between
            is_deleted = False
        if not is_deleted:
            message = f"the {kind.noun} {owner_id} still has keys, users or teams: delete those, or disable it instead"
            raise ApiError(409, message, code="in_use")
        record_act(self.store.audit, Act(by, f"{kind.value}.delete", owner_id, before.organisation, before.to_json()))
        return before

    def owner_of(self, by: Principal, kind: OwnerKind, owner_id: str) -> Owner:
        """The owner that a field of a draft names.

        Raises:
            ApiError: 422, there is none in reach.
        """
        owner = self.store.people.find(kind, owner_id)
        if owner is None or not by.sees(owner.organisation):
            raise _unknown(kind, owner_id, kind.field)
        return owner

    def _organisation(self, by: Principal, org_id: str | None) -> str:
        org_id = org_id or by.org_id
        if org_id is None:
            raise ApiError(422, "org_id is missing: which organisation is it for?", param="org_id")
        return self.owner_of(by, OwnerKind.ORG, org_id).id

    def _visible(self, by: Principal, kind: OwnerKind, owner_id: str) -> Owner:
        owner = self.store.people.find(kind, owner_id) if owner_id.isascii() and owner_id.isprintable() else None
        if owner is None or not by.sees(owner.organisation):
            raise ApiError(404, f"there is no {kind.noun} {owner_id[:100]!r}", code="not_found")
        return owner

    def _changeable(self, by: Principal, kind: OwnerKind, owner_id: str) -> Owner:
        by.require(Scope.ADMIN_WRITE)
        owner = self._visible(by, kind, owner_id)
        if kind is OwnerKind.ORG:
            by.require_everything()  # who administers an organisation does not decide on the organisation itself
        return owner

    def _insert(self, by: Principal, owner: Owner) -> Owner:
        try:
            self.store.people.insert(owner)
        except StoreConflictError:
            raise _taken(owner.kind, owner.name) from None
        record_act(
            self.store.audit, Act(by, f"{owner.kind.value}.create", owner.id, owner.organisation, None, owner.to_json())
        )
        return owner

    def _change(self, by: Principal, before: Owner, action: str, changes: dict[str, object]) -> Owner:
        try:
            after = self.store.people.change(before.kind, before.id, changes)
        except StoreConflictError:
            raise _taken(before.kind, str(changes.get("name", before.name))) from None
        if after is None:
            raise ApiError(404, f"there is no {before.kind.noun} {before.id!r}", code="not_found")
        act = Act(
            by, f"{before.kind.value}.{action}", before.id, before.organisation, before.to_json(), after.to_json()
        )
        record_act(self.store.audit, act)
        return after


def _new_id(kind: OwnerKind) -> str:
    return f"{kind.value}-{random_base62(12)}"


def _check_same(team: Owner | None, org_id: str | None) -> None:
    if team is not None and team.org_id != org_id:
        raise ApiError(422, f"team_id={team.id!r} is of another organisation", param="team_id")


def _unknown(kind: OwnerKind, owner_id: str, param: str) -> ApiError:
    return ApiError(422, f"{param}={owner_id!r}: there is no such {kind.noun}", param=param)


def _taken(kind: OwnerKind, name: str) -> ApiError:
    where = "" if kind is OwnerKind.ORG else " of its organisation"
    return ApiError(409, f"name={name!r} is taken by another {kind.noun}{where}", param="name", code="name_taken")
