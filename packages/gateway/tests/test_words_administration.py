"""Word lists by command, and the rules behind them."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.cli import main
from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.entries import Entry, Level
from deepseek_gateway.guard.service import PhraseDraft, PolicyDraft, PolicyTarget, TestDraft, WordService
from deepseek_gateway.storage.store import Store
from deepseek_gateway.storage.words import ReviewRow
from deepseek_gateway.testing.stack import Stack

OPERATOR = Principal.operator()


@pytest.fixture
def state(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["migrate", "--state", str(state_dir)]) == 0
    capsys.readouterr()
    return state_dir


def test_a_list_is_imported_tried_activated_and_exported(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(*arguments: str) -> tuple[int, str]:
        status = main(["words", arguments[0], "--state", str(state), *arguments[1:]])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    file = tmp_path / "list.csv"
    file.write_text("pattern,level\nbad,block\nrude,mask\nbadge,allow\n")
    assert words("import", "demo", str(file), "--note", "first")[0] == 0
    status, out = words("test", "--list", "demo", "a rude badge is bad")
    assert status == 1
    assert "demo@1#1" in out
    assert "blocked after: a **** badge is" in out
    assert words("test", "bad")[0] == 0  # not in force yet
    assert "at version 1" in words("activate", "demo", "1")[1]
    assert words("test", "bad")[0] == 1
    assert "no key with this id" in words("policy", "demo", "mask", "--scope", "key", "--id", "k1")[1]
    assert "no organisation 'acme'" in words("policy", "demo", "mask", "--scope", "org", "--id", "acme")[1]
    assert main(["org", "create", "acme", "--state", str(state)]) == 0
    org = capsys.readouterr().out.strip()
    assert f"for org {org}" in words("policy", "demo", "listed", "--scope", "org", "--id", "acme")[1]
    assert words("policy", "demo", "drop", "--scope", "org", "--id", org)[0] == 0
    assert main(["key", "create", "--name", "k", "--state", str(state), "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["id"]
    assert words("policy", "demo", "mask", "--scope", "key", "--id", key)[0] == 0
    assert "passes as: ***" in words("test", "bad", "--key", key)[1]
    monkeypatch.setattr("sys.stdin", io.StringIO("worse\nworst\n"))
    version = json.loads(words("import", "demo", "--activate", "--json")[1])
    assert (version["version"], version["entries"]) == (2, 2)
    assert "first" in words("versions", "demo")[1]
    assert words("export", "demo", "--version", "1")[1].splitlines()[1].startswith("bad,block,")
    assert words("export", "demo", "--format", "text")[1] == "worse\nworst\n"
    listed = json.loads(words("list", "--json")[1])
    assert listed["lists"][0]["active_version"] == 2
    assert listed["policies"][0]["level"] == "mask"
    assert words("policy", "demo", "drop", "--scope", "key", "--id", key)[0] == 0
    assert "demo is off" in words("activate", "demo", "off")[1]
    assert words("import", "shown", "--demonstration", "--activate")[0] == 0
    assert "****" in words("test", "oh dagnabbit")[1]
    assert words("review")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["activate", "none", "1"], "there is no word list 'none'"),
        (["import", "bad name", "--demonstration"], "letters, digits"),
        (["import", "demo", "/no/such/file"], "cannot be read"),
        (["export", "none"], "there is no word list"),
        (["policy", "none", "mask"], "there is no word list"),
        (["policy", "none", "mask", "--scope", "key"], "scope_id"),
        (["review", "--confirm", "rev-x"], "there is no review"),
    ],
)
def test_faults_are_explained(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["words", arguments[0], "--state", str(state), *arguments[1:]]) == 1
    assert message in capsys.readouterr().err


def queued(store: Store) -> ReviewRow:
    row = ReviewRow(*("rev-1", 5.0, "req-1", "key", None, "out", "text", 0, "demo@1#1", "", "review", 0, 3, "ff"))
    store.words.add_reviews([row])
    return row


def test_reviews_are_decided_and_a_dismissed_one_becomes_an_allowed_phrase(store: Store) -> None:
    service = WordService(store)
    service.add_version(OPERATOR, "demo", [Entry("plan", Level.REVIEW)], activate=True)
    queued(store)
    assert service.counts(OPERATOR) == {"new": 1, "confirmed": 0, "dismissed": 0}
    assert service.confirm(OPERATOR, "rev-1", "true").state == "confirmed"
    row, proposal = service.dismiss(OPERATOR, "rev-1")
    assert (row.state, row.decided_by, proposal) == ("dismissed", str(OPERATOR), "plan")
    version = service.allow(OPERATOR, "demo", PhraseDraft(phrase="plan of the house"))
    assert version.version == 2
    assert service.lists(OPERATOR)[0].active_version == 2
    result = service.test(OPERATOR, TestDraft(text="the plan of the house is a plan"))
    assert [hit["start"] for hit in result["hits"]] == [27]
    rows, after = service.reviews(OPERATOR, None)
    assert ([found.id for found in rows], after) == (["rev-1"], None)


def test_every_act_is_in_the_audit_log(store: Store) -> None:
    service = WordService(store)
    service.add_version(OPERATOR, "demo", [Entry("plan")], activate=True)
    service.set_policy(OPERATOR, "demo", PolicyDraft(level="mask"))
    service.drop_policy(OPERATOR, "demo", PolicyTarget())
    queued(store)
    service.dismiss(OPERATOR, "rev-1")
    actions = [entry.action for entry in store.audit.entries()]
    assert actions == ["words.import", "words.activate", "words.policy", "words.policy_drop", "review.dismissed"]


def test_lists_are_for_administrators_of_all_with_the_right_scope(store: Store) -> None:
    service = WordService(store)
    reader = Principal("key", "k1", frozenset({Scope.ADMIN_READ}))
    of_one = Principal("key", "k2", frozenset({Scope.ADMIN_READ, Scope.ADMIN_WRITE}), org_id="o1")
    assert service.lists(reader) == []
    attempts: list[Any] = [
        lambda: service.lists(of_one),
        lambda: service.add_version(of_one, "demo", [Entry("plan")]),
        lambda: service.add_version(reader, "demo", [Entry("plan")]),
        lambda: service.confirm(reader, "rev-1"),
    ]
    for attempt in attempts:
        with pytest.raises(ApiError) as refused:
            attempt()
        assert refused.value.status == 403


async def test_lists_and_reviews_are_administered_over_http(stack: Stack) -> None:
    admin = stack.caller.with_key(stack.running.key(scopes=["admin"]))
    made = await admin.post("/admin/words/demo", {"text": "bad\nplan\n", "format": "text", "level": "review"})
    assert (made.status, made.json["version"], made.json["entries"]) == (201, 1, 2)
    assert (await admin.post("/admin/words/demo/activate", {"version": 1})).json["active_version"] == 1
    await stack.gateway.words.refresh()
    assert (await stack.caller.post(body={"prompt": "a plan"})).status == 200
    await asyncio.to_thread(stack.gateway.words.queue.flush)
    (review,) = (await admin.get("/admin/reviews?state=new")).json["data"]
    assert (review["rule"], review["field"]) == ("demo@1#2", "prompt")
    dismissed = (await admin.post(f"/admin/reviews/{review['id']}/dismiss", {"note": "harmless"})).json
    assert (dismissed["review"]["state"], dismissed["proposal"]) == ("dismissed", "plan")
    assert (await admin.post("/admin/words/demo/allow", {"phrase": "a plan"})).json["version"] == 2
    assert (await admin.post("/admin/words/demo/policy", {"level": "mask"})).json["level"] == "mask"
    tried = (await admin.post("/admin/word-test", {"text": "a plan and bad"})).json
    assert (tried["text"], tried["is_blocked"]) == ("a plan and ***", False)
    assert (await admin.post("/admin/words/demo/policy/drop", {})).json == {"dropped": True}
    exported = (await admin.get("/admin/words/demo/export?format=text")).json
    assert exported == {"list": "demo", "version": 2, "text": "bad\nplan\na plan\n"}
    listed = (await admin.get("/admin/words")).json
    assert (listed["data"][0]["active_version"], listed["policies"], listed["fault"]) == (2, [], None)
    assert (await admin.post("/admin/words/demo", {"text": "a*,x", "format": "csv"})).status == 422
    assert (await admin.get("/admin/words/none")).status == 404
    assert (await stack.caller.get("/admin/words")).status == 403
