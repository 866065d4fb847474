"""Every act of an administrator is in the audit log, in the transaction that made the change."""

import json

import pytest

from deepseek_gateway.auth.drafts import KeyChanges, KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import ADMIN, Scope
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.errors import ApiError
from deepseek_gateway.openapi.operations import OPERATIONS
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.people.service import OrgDraft, OwnerChanges, PeopleService, TeamDraft, UserChanges, UserDraft
from deepseek_gateway.storage.audit import AuditTable
from deepseek_gateway.storage.store import Store

ANNA = Principal("session", "anna", ADMIN, request_id="req-1")


def actions(store: Store) -> list[tuple[str, str]]:
    return [(entry.action, entry.subject) for entry in store.audit.entries()]


def test_every_act_on_keys_is_an_entry_without_secrets(store: Store) -> None:
    keys = KeyService(store, b"pepper of the test")
    issued = keys.create(ANNA, KeyDraft(name="app"))
    name = issued.record.public_id
    keys.change(ANNA, name, KeyChanges(name="other"))
    rotated = keys.rotate(ANNA, name, 60)
    keys.set_disabled(ANNA, name, disabled=True)
    keys.set_disabled(ANNA, name, disabled=False)
    keys.revoke(ANNA, name)
    keys.revoke(ANNA, name)  # changes nothing
    many = [key.record.public_id for key in keys.create_many(ANNA, KeyDraft(name="n"), 3)]
    keys.delete(ANNA, many[0])
    acts = ["create", "change", "rotate", "disable", "enable", "revoke"]
    assert actions(store) == [*((f"key.{act}", name) for act in acts), ("key.create", many[0]), ("key.delete", many[0])]
    entries = list(store.audit.entries())
    assert {(entry.actor, entry.request_id) for entry in entries} == {("session:anna", "req-1")}
    assert (json.loads(entries[1].before)["name"], json.loads(entries[1].after)["name"]) == ("app", "other")
    assert json.loads(entries[6].after)["ids"] == many
    text = json.dumps([entry.to_json() for entry in entries])
    for secret in (issued.text, rotated.text, issued.record.secret_hash, rotated.record.secret_hash):
        assert secret not in text
        assert secret.split("_")[-2 if "_" in secret else 0] not in text
    assert store.audit.verify() == (8, None)


def test_every_act_on_people_is_an_entry(store: Store) -> None:
    people = PeopleService(store)
    org = people.create_org(ANNA, OrgDraft(name="org"))
    team = people.create_team(ANNA, TeamDraft(name="team", org_id=org.id))
    user = people.create_user(ANNA, UserDraft(name="user", org_id=org.id))
    people.rename(ANNA, OwnerKind.ORG, org.id, OwnerChanges(name="renamed"))
    people.change_user(ANNA, user.id, UserChanges(team_id=team.id))
    people.set_disabled(ANNA, OwnerKind.USER, user.id, disabled=True)
    people.delete(ANNA, OwnerKind.USER, user.id)
    with pytest.raises(ApiError):
        people.create_org(ANNA, OrgDraft(name="renamed"))
    assert actions(store) == [
        ("org.create", org.id),
        ("team.create", team.id),
        ("user.create", user.id),
        ("org.rename", org.id),
        ("user.change", user.id),
        ("user.disable", user.id),
        ("user.delete", user.id),
    ]


def test_a_change_whose_entry_cannot_be_written_is_not_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyService(store, b"pepper of the test")
    issued = keys.create(ANNA, KeyDraft(name="app"))

    def broken(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(AuditTable, "append", broken)
    with pytest.raises(OSError):  # noqa: PT011  the one raised above
        keys.revoke(ANNA, issued.record.public_id)
    with pytest.raises(OSError):  # noqa: PT011
        keys.create(ANNA, KeyDraft(name="lost"))
    found = store.keys.find(issued.record.public_id)
    assert found is not None
    assert found.revoked is None
    assert store.database.read("SELECT count(*) FROM api_keys") == [(1,)]


def test_every_operation_of_the_admin_api_that_changes_something_is_audited() -> None:
    """A new one is not finished before its service's acts are in the log and it stands here."""
    changing = {f"{each.method} {each.path}" for each in OPERATIONS if each.access is Scope.ADMIN_WRITE}
    audited = (
        "keys",
        "orgs",
        "teams",
        "users",
        "rules",
        "limits",
        "balances",
        "words",
        "word-",
        "payload",
        "erasures",
        "reviews",
    )
    unknown = {each for each in changing if not any(f"/admin/{name}" in each for name in audited)}
    assert unknown <= {"GET /admin/requests/{request_id}/payload"}
