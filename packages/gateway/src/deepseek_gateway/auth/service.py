"""Administration of keys: the rules, whatever the way in."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from deepseek_gateway.auth.acts import Act, record_act
from deepseek_gateway.auth.drafts import KeyChanges, KeyDraft
from deepseek_gateway.auth.fields import MAX_NAME
from deepseek_gateway.auth.keys import hash_secret, new_key
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import KeyRecord, Scope, parse_scopes
from deepseek_gateway.errors import ApiError, StoreConflictError
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.people.service import PeopleService
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.keys import BATCH, KeyFilter
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.storage.store import Store

MAX_GRACE_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the one moment when its text is known."""

    text: str
    record: KeyRecord

    def __repr__(self) -> str:
        return f"IssuedKey({self.record.public_id!r})"


@dataclass(frozen=True, slots=True)
class KeyService:
    """Keys of one store, hashed with its pepper. Calls block on the store.

    Every method takes who asks first, and raises ApiError: 403, it may not; 404, it cannot see such a key; 409, the
    key's state forbids it; 422, a field is wrong. What it changes is in force on every gateway within 5 seconds.
    """

    store: Store
    pepper: bytes = field(repr=False)

    def create(self, by: Principal, draft: KeyDraft) -> IssuedKey:
        """Issue a key."""
        (issued,) = self.create_many(by, draft)
        return issued

    def create_many(self, by: Principal, draft: KeyDraft, count: int | None = None) -> Iterator[IssuedKey]:
        """Issue keys that differ in their secrets, and in a number behind their names where there is a `count`.

        They are made in batches while the caller takes them, so that any number fits into memory. Those that were taken
        are in force, whatever becomes of the rest.
        """
        by.require(Scope.ADMIN_WRITE)
        template = self._template(by, draft)
        if count is None:
            return self._issue(by, template, [draft.name])
        longest = len(f"{draft.name}-{count}")
        if longest > MAX_NAME:
            message = f"name={draft.name!r} has no room for a number: its last would have {longest} characters"
            raise ApiError(422, message, param="name")
        return self._issue(by, template, [f"{draft.name}-{number}" for number in range(1, count + 1)])

    def get(self, by: Principal, public_id: str) -> KeyRecord:
        """One key."""
        by.require(Scope.ADMIN_READ)
        return self._visible(by, public_id)

    def page(
        self,
        by: Principal,
        wanted: KeyFilter,
        *,
        after: Cursor | None = None,
        limit: int = 50,
        newest_first: bool = False,
    ) -> tuple[list[KeyRecord], Cursor | None]:
        """Keys, the oldest first unless said otherwise, and where the next page begins."""
        by.require(Scope.ADMIN_READ)
        if by.org_id is not None:
            if wanted.org_id not in (None, by.org_id):
                message = f"org_id={wanted.org_id!r}: there is no such organisation"
                raise ApiError(422, message, param="org_id")
            wanted = replace(wanted, org_id=by.org_id)
        found = self.store.keys.page(wanted, time.time(), after, limit + 1, newest_first=newest_first)
        more = len(found) > limit
        return found[:limit], Cursor(found[limit - 1].created, found[limit - 1].public_id) if more else None

    @atomic
    def change(self, by: Principal, public_id: str, changes: KeyChanges) -> KeyRecord:
        """Change what a draft gives; a revoked key stays as it is."""
        before = self._changeable(by, public_id)
        wanted: dict[str, Any] = {name: getattr(changes, name) for name in changes.model_fields_set}
        if not wanted:
            return before
        if "tags" in wanted:
            wanted["tags"] = list(dict.fromkeys(changes.tags))
        if "scopes" in wanted:
            wanted["scopes"] = parse_scopes(wanted["scopes"])
        if "limits" in wanted:
            wanted["limits"] = changes.limits.to_limits()
        _check_expires(wanted.get("expires"))
        self._check_owners(by, before.org_id, wanted.get("team_id"), wanted.get("user_id"))
        return self._done(by, "change", before, self.store.keys.change(public_id, wanted))

    @atomic
    def rotate(self, by: Principal, public_id: str, grace_s: float) -> IssuedKey:
        """Give a key a new secret; the old one works for `grace_s` more seconds."""
        before = self._changeable(by, public_id)
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise ApiError(422, f"grace_s={grace_s} is not within 0..{MAX_GRACE_S:g}", param="grace_s")
        key = new_key(public_id)
        after = self.store.keys.rotate(public_id, hash_secret(self.pepper, key), time.time() + grace_s)
        return IssuedKey(key.text, self._done(by, "rotate", before, after))

    @atomic
    def set_disabled(self, by: Principal, public_id: str, *, disabled: bool) -> KeyRecord:
        """Let a key rest, or work again."""
        before = self._changeable(by, public_id)
        after = self.store.keys.set_disabled(public_id, time.time() if disabled else None)
        return self._done(by, "disable" if disabled else "enable", before, after)

    @atomic
    def revoke(self, by: Principal, public_id: str) -> KeyRecord:
        """End a key for good; harmless to repeat."""
        by.require(Scope.ADMIN_WRITE)
        before = self._visible(by, public_id)
        if before.revoked is not None:
            return before
        return self._done(by, "revoke", before, self.store.keys.revoke(public_id, time.time()))

    @atomic
    def delete(self, by: Principal, public_id: str) -> KeyRecord:
        """Delete a key that was never used: one that was must stay, so that what it used stays explained."""
        by.require(Scope.ADMIN_WRITE)
        before = self._visible(by, public_id)
        if not self.store.keys.delete_unused(public_id):
            raise ApiError(409, f"the key {public_id} was used: revoke it instead", code="in_use")
        record_act(self.store.audit, Act(by, "key.delete", public_id, before.org_id, before.to_json(time.time())))
        return before

    def _issue(self, by: Principal, template: KeyRecord, names: Sequence[str]) -> Iterator[IssuedKey]:
        for at in range(0, len(names), BATCH):
            batch = [self._issued(template, name) for name in names[at : at + BATCH]]
            self._insert(by, [issued.record for issued in batch])
            yield from batch

    @atomic
    def _insert(self, by: Principal, records: Sequence[KeyRecord]) -> None:
        try:
            self.store.keys.insert(*records)
        except StoreConflictError as error:  # an owner was deleted since it was looked up
            raise ApiError(409, "the key's organisation, team or user is gone", code="owner_gone") from error
        first = records[0]
        after = first.to_json(time.time())
        if len(records) > 1:
            after = {"first": after, "ids": [record.public_id for record in records]}
        record_act(self.store.audit, Act(by, "key.create", first.public_id, first.org_id, None, after, len(records)))

    def _template(self, by: Principal, draft: KeyDraft) -> KeyRecord:
        """The record of a draft, but for what differs from key to key."""
        people = PeopleService(self.store)
        user = None if draft.user_id is None else people.owner_of(by, OwnerKind.USER, draft.user_id)
        team_id = draft.team_id or (user.team_id if user else None)
        team = None if team_id is None else people.owner_of(by, OwnerKind.TEAM, team_id)
        org_id = draft.org_id or by.org_id or next((owner.org_id for owner in (user, team) if owner), None)
        if org_id is not None:
            people.owner_of(by, OwnerKind.ORG, org_id)
        self._check_owners(by, org_id, team_id, draft.user_id)
        _check_expires(draft.expires)
        return KeyRecord(
            public_id="",
            secret_hash="",
            name=draft.name,
            scopes=parse_scopes(draft.scopes),
            created=time.time(),
            models=None if draft.models is None else tuple(draft.models),
            limits=draft.limits.to_limits(),
            expires=draft.expires,
            org_id=org_id,
            team_id=team_id,
            user_id=draft.user_id,
            cidrs=None if draft.cidrs is None else tuple(draft.cidrs),
            tags=tuple(dict.fromkeys(draft.tags)),
            created_by=str(by),
        )

    def _issued(self, template: KeyRecord, name: str) -> IssuedKey:
        key = new_key()
        record = replace(template, name=name, public_id=key.public_id, secret_hash=hash_secret(self.pepper, key))
        return IssuedKey(key.text, record)

    def _visible(self, by: Principal, public_id: str) -> KeyRecord:
        record = self.store.keys.find(public_id) if public_id.isalnum() and public_id.isascii() else None
        if record is None or not by.sees(record.org_id):
            raise ApiError(404, f"there is no key with the id {public_id[:100]!r}", code="not_found")
        return record

    def _changeable(self, by: Principal, public_id: str) -> KeyRecord:
        by.require(Scope.ADMIN_WRITE)
        record = self._visible(by, public_id)
        if record.revoked is not None:
            raise _is_revoked(public_id)
        return record

    def _check_owners(self, by: Principal, org_id: str | None, team_id: str | None, user_id: str | None) -> None:
        people = PeopleService(self.store)
        for kind, owner_id in ((OwnerKind.TEAM, team_id), (OwnerKind.USER, user_id)):
            if owner_id is not None and people.owner_of(by, kind, owner_id).org_id != org_id:
                message = f"{kind.field}={owner_id!r} is of another organisation than the key"
                raise ApiError(422, message, param=kind.field)

    def _done(self, by: Principal, action: str, before: KeyRecord, after: KeyRecord | None) -> KeyRecord:
        if after is None:  # another administrator was faster
            raise _is_revoked(before.public_id)
        now = time.time()
        record_act(
            self.store.audit,
            Act(by, f"key.{action}", before.public_id, before.org_id, before.to_json(now), after.to_json(now)),
        )
        return after


def _is_revoked(public_id: str) -> ApiError:
    return ApiError(409, f"the key {public_id} is revoked, and stays so: make another", code="revoked")


def _check_expires(expires: float | None) -> None:
    if expires is not None and expires <= time.time():
        shown = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M} UTC"
        raise ApiError(422, f"expires={expires:.0f} ({shown}) has passed: revoke a key to end it now", param="expires")
