"""The commands for the audit log, traces and kept texts, as whoever types them sees them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_gateway.audit.trail import Step, Trail
from deepseek_gateway.audit.vault import Vault, load_master_key
from deepseek_gateway.cli import main
from deepseek_gateway.ledger.records import LedgerRow, Settled
from deepseek_gateway.storage.payloads import PlainPayload
from deepseek_gateway.storage.store import open_store
from deepseek_gateway.testing.tampering import tamper
from deepseek_gateway.upstream.attempts import Attempt

Run = Callable[..., str]


@pytest.fixture
def run(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that should succeed, or end with `status`; gives what it prints."""

    def call(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main([*arguments, "--state", str(state_dir)]) == status
        printed = capsys.readouterr()
        return printed.out + printed.err

    call("migrate")
    return call


@pytest.fixture
def key(run: Run) -> str:
    return json.loads(run("key", "create", "--name", "app", "--json"))["id"]


def settled(key: str) -> Settled:
    row = LedgerRow(
        request_id="req-1", attempt=2, key_id=key, route="/v1/generate", model="m", upstream="http://b", stream=True,
        status="finished", end_reason="stop", http_status=200, prompt_tokens=5, completion_tokens=7,
        cached_tokens=1, accuracy="exact", latency_ms=12.5, ttft_ms=3.25, created=1795392000.0,
        cost_nano=190_000_000, price_version="m@2026-01-01",
    )  # fmt: skip
    tries = (
        Attempt(1, "http://a", "up-1", 0.1, 2.0, 503, fault="the engine at http://a answers 503: busy"),
        Attempt(2, "http://b", "up-2", 2.2, 9.9, 200),
    )
    return Settled(row, Trail("my-id", "p1", "w1", tries, (Step("queue", 0.2, "waited 0.1 ms"),)))


def test_a_request_is_traced_by_our_id_and_by_the_callers(run: Run, key: str, state_dir: Path) -> None:
    store = open_store(state_dir / "gateway.sqlite3", None)
    store.books.keep([settled(key)])
    store.close()
    text = run("trace", "req-1")
    for part in ("caller's  my-id", f"key       {key}", "policy p1, word lists w1", "answers 503: busy", "up-2"):
        assert part in text
    assert "5 prompt (1 cached), 7 completion, exact" in text
    assert "cost      0.19, at the price m@2026-01-01\n" in text
    assert json.loads(run("trace", "my-id", "--json"))["attempts"][1]["upstream"] == "http://b"
    assert "there is no request" in run("trace", "nothing", status=1)


def test_the_log_is_listed_verified_exported_and_its_head_kept(run: Run, key: str, state_dir: Path) -> None:
    run("key", "revoke", key)
    listed = run("audit", "list")
    assert listed.index("key.revoke") < listed.index("key.create")
    assert "cli:" in listed
    assert "key.revoke" in run("audit", "list", "--since", "1h")
    assert "key.revoke" not in run("audit", "list", "--until", "1h")
    head = run("audit", "head")
    heads = state_dir / "heads"
    heads.write_text(head)
    assert "sound: 2 entries" in run("audit", "verify", "--heads", str(heads))
    lines = [json.loads(line) for line in run("audit", "export").splitlines()]
    assert [line["action"] for line in lines] == ["key.create", "key.revoke"]
    assert lines[1]["hash"] == json.loads(head)["hash"]
    tamper("UPDATE audit_log SET actor = 'cli:nobody' WHERE sequence = 1", None, state_dir / "gateway.sqlite3")
    assert "NOT SOUND at entry 1 (changed)" in run("audit", "verify", status=1)
    assert json.loads(run("audit", "verify", "--json", status=1))["fault"]["sequence"] == 1
    heads.write_text("nonsense")
    assert "something else" in run("audit", "verify", "--heads", str(heads), status=1)


def test_texts_are_kept_shown_and_erased_with_a_proof_that_checks(run: Run, key: str, state_dir: Path) -> None:
    assert "made the master key" in run("payload", "keep", "--key", key, "--days", "7")
    assert json.loads(run("payload", "policies", "--json")) == [
        {"kind": "key", "id": key, "days": 7, "mask_pii": False}
    ]
    master = load_master_key(state_dir / "payload-key", None)
    assert master is not None
    store = open_store(state_dir / "gateway.sqlite3", None)
    payload = PlainPayload("req-1", f"key:{key}", key, 1795392000.0, 9e9, False, b'{"request":"hi","answer":"ho"}')
    store.payloads.keep([payload], Vault(master))
    store.close()
    assert json.loads(run("payload", "show", "req-1"))["answer"] == "ho"
    proof = state_dir / "proof"
    proof.write_text(run("erase", "--key", key))
    checked = run("erase", "--check", str(proof))
    assert "the proof holds: 1 texts" in checked
    assert "0 gateway processes dropped theirs" in checked
    assert "no texts" in run("payload", "show", "req-1", status=1)
    proof.write_text(proof.read_text().replace('"payloads": 1', '"payloads": 2'))
    assert "says something else" in run("erase", "--check", str(proof), status=1)
    run("payload", "stop", "--key", key)
    acts = [entry["action"] for entry in json.loads(run("audit", "list", "--json"))]
    assert acts[:4] == ["payload_policy.remove", "payload.erase", "payload.show", "payload_policy.set"]
