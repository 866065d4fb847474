"""Texts are kept only where a policy says so, sealed, for their days; and erased with proof."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.audit.payload import Capture, Payload, Policy
from deepseek_gateway.audit.retention import RetentionService
from deepseek_gateway.audit.texts import joined, text_of
from deepseek_gateway.audit.vault import Vault, VaultError, create_master_key, open_text, seal_text
from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.errors import ApiError, ConfigurationError, StoreUnavailableError
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.storage.payloads import PayloadTable, PlainPayload
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.stack import Stack, running_stack
from deepseek_gateway.testing.tampering import tamper

BY = Principal.operator()
MASTER = b"m" * 32


@pytest.fixture
def vault() -> Vault:
    return Vault(MASTER)


def plain(name: str, subject: str = "user:u1", text: bytes = b'{"request":"r","answer":"a"}') -> PlainPayload:
    return PlainPayload(name, subject, "key", 100.0, 200.0, False, text)


async def keep_texts(stack: Stack, **policy: Any) -> None:
    service = RetentionService(stack.gateway.store)
    chosen = Policy(**{"days": 5, "mask_pii": False, **policy})
    await asyncio.to_thread(service.set_policy, BY, "key", stack.caller.key_id, chosen)
    await stack.gateway.payloads.refresh()


async def shown(stack: Stack, request_id: str) -> dict[str, Any]:
    await until(lambda: stack.gateway.running == 0)
    await stack.gateway.payloads.flush()
    service = RetentionService(stack.gateway.store, stack.gateway.payloads.vault)
    return await asyncio.to_thread(service.show, BY, request_id)


@pytest.fixture
def settings() -> dict[str, object]:
    return {"payload_key": base64.b64encode(MASTER).decode(), "upstream_probe_s": 0.05}


async def test_nothing_is_kept_without_a_policy(state_dir: Path, settings: dict[str, object]) -> None:
    async with running_stack(state_dir, **settings) as stack:
        reply = await stack.caller.post()
        with pytest.raises(ApiError, match="no texts"):
            await shown(stack, reply.headers["x-request-id"])


async def test_what_was_asked_and_answered_is_kept_sealed_and_reading_it_is_audited(
    state_dir: Path, store_url: str | None, settings: dict[str, object]
) -> None:
    more = {} if store_url is None else {"store_url": store_url}
    async with running_stack(state_dir, **settings, **more) as stack:
        await keep_texts(stack)
        store = stack.gateway.store
        whole = await stack.caller.post(body={"prompt": "tell me a secret"})
        streamed = await stack.caller.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "mail a@b.example"}], "stream": True, "fake": {"tokens": 3}},
        )
        first = await shown(stack, whole.headers["x-request-id"])
        second = await shown(stack, streamed.headers["x-request-id"])
        assert first["request"]["prompt"] == "tell me a secret"
        assert first["answer"]["text"] == whole.json["text"]
        assert second["answer"]["choices"][0]["delta"]["content"] == "w1 xxw2 xxw3 xx"
        assert second["request"]["messages"][0]["content"] == "mail a@b.example"
        sealed = store.payloads.find(whole.headers["x-request-id"])
        assert sealed is not None
        assert b"secret" not in sealed.sealed
        reads = [entry.subject for entry in store.audit.entries() if entry.action == "payload.show"]
        assert reads == [whole.headers["x-request-id"], streamed.headers["x-request-id"]]
        life = store.lives.find(whole.headers["x-request-id"])
        assert life is None or life.to_json()["is_kept"] is True


async def test_personal_data_is_masked_before_it_is_kept(state_dir: Path, settings: dict[str, object]) -> None:
    async with running_stack(state_dir, **settings) as stack:
        await keep_texts(stack, mask_pii=True)
        reply = await stack.caller.post(body={"prompt": "write to anna@example.com or +49 170 1234567"})
        kept = await shown(stack, reply.headers["x-request-id"])
        assert kept["request"]["prompt"] == "write to [email] or [phone]"
        assert kept["is_masked"] is True


async def test_a_store_that_is_down_loses_texts_and_no_request(
    state_dir: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise StoreUnavailableError("the disk is full")

    async with running_stack(state_dir, **settings) as stack:
        await keep_texts(stack)
        monkeypatch.setattr(PayloadTable, "keep", failing)
        reply = await stack.caller.post()
        assert reply.status == 200
        await stack.gateway.payloads.flush()
        await until(lambda: stack.gateway.payloads.failure == "the disk is full")
        monkeypatch.undo()
        metrics = (await stack.caller.get("/metrics")).body.decode()
        assert 'deepseek_gateway_payloads_total{outcome="lost"} 1.0' in metrics
        await stack.caller.post()
        await stack.gateway.payloads.flush()
        await until(lambda: stack.gateway.payloads.failure is None)


async def test_a_full_queue_and_a_missing_master_key_lose_texts_and_no_request(state_dir: Path) -> None:
    async with running_stack(state_dir) as stack:
        await keep_texts(stack)
        assert (await stack.caller.post()).status == 200
        await until(lambda: "no master key" in (stack.gateway.payloads.failure or ""))
        create_master_key(stack.gateway.settings.payload_key_path)  # as `payload keep` does beside a gateway
        answer = await stack.caller.post()
        assert "answer" in await shown(stack, answer.headers["x-request-id"])
        stack.gateway.payloads._queue_bytes = 10
        assert (await stack.caller.post()).status == 200
        await until(lambda: stack.gateway.payloads.failure == "the queue is full")


def test_a_long_answer_is_kept_up_to_its_bound() -> None:
    capture = Capture(100)
    frames = [b"data: " + b"x" * 40 + b"\n\n" for _ in range(5)]
    assert [capture.pass_on(frame) for frame in frames] == frames
    assert (len(capture.parts), capture.is_truncated) == (2, True)
    body = Capture(10)
    assert body.body(b"y" * 50) == b"y" * 50
    assert (body.parts, body.is_truncated) == ([b"y" * 10], True)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.text())
def test_a_streams_pieces_are_put_together(pieces: list[str], thought: str) -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}
    chunks += [{"choices": [{"index": 1, "delta": {"tool_calls": [call]}}]}]
    chunks += [
        {"choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}}]}
        for piece in pieces
    ]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    frames = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    answer = joined([b": keep-alive\n\n", *frames, b"data: [DONE]\n\n"])
    first, second = answer["choices"]
    assert first["delta"]["content"] == "".join(pieces)
    assert first["delta"]["reasoning_content"] == thought
    assert first["finish_reason"] == "stop"
    assert second["delta"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "".join(pieces)}


def test_what_was_cut_off_is_kept_as_text() -> None:
    payload = Payload("r", "user:u", "k", Policy(1, False), 1.0, b'{"prompt": "a', (b'{"te',), False, True)
    assert json.loads(text_of(payload)) == {"request": '{"prompt": "a', "answer": '{"te', "is_truncated": True}


@given(st.binary(max_size=200), st.integers(0, 300))
def test_a_sealed_text_opens_only_whole_and_in_its_own_row(text: bytes, at: int) -> None:
    key = b"k" * 32
    sealed = seal_text(key, "user:u", "r1", text)
    assert open_text(key, "user:u", "r1", sealed) == text
    for subject, request_id in (("user:v", "r1"), ("user:u", "r2")):
        with pytest.raises(VaultError):
            open_text(key, subject, request_id, sealed)
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1
    with pytest.raises(VaultError):
        open_text(key, "user:u", "r1", bytes(changed))


def test_a_data_key_opens_under_its_own_master_key_only(vault: Vault) -> None:
    key, wrapped = vault.new_data_key("user:u")
    assert vault.unwrap("user:u", wrapped) == key
    with pytest.raises(VaultError, match="another master key"):
        Vault(b"n" * 32).unwrap("user:u", wrapped)
    assert "mmm" not in repr(vault)
    with pytest.raises(ConfigurationError, match="not 32"):
        Vault(b"short")


def test_texts_go_when_their_days_are_over(store: Store, vault: Vault) -> None:
    store.payloads.keep([plain("r1"), plain("r2", "user:u2")], vault)
    assert store.payloads.sweep(199.0) == 0
    assert store.payloads.sweep(200.0) == 2
    assert store.payloads.find("r1") is None


def test_erasing_destroys_the_data_key_and_leaves_a_proof_that_can_be_checked(
    store: Store, store_url: str | None, tmp_path: Path, vault: Vault
) -> None:
    service = RetentionService(store, vault)
    store.payloads.keep([plain("r1"), plain("r2"), plain("other", "user:u2")], vault)
    proof = service.erase(BY, "user:u1")
    assert (proof["payloads"], service.check(proof)) == (2, [])
    assert store.payloads.wrapped_key("user:u1") is None
    with pytest.raises(ApiError, match="no texts"):
        service.show(BY, "r1")
    assert service.show(BY, "other")["request"] == "r"
    store.payloads.keep([plain("later")], vault)  # a new data key
    assert service.show(BY, "later")["answer"] == "a"
    assert service.check(proof) == ["1 texts of user:u1 from before the erasure are there, unreadable: erase again"]
    assert store.audit.verify()[1] is None
    assert service.check({**proof, "payloads": 1}) != []
    assert service.check({**proof, "entry": 1}) != []
    tamper("DELETE FROM audit_log WHERE action = 'payload.erase'", store_url, tmp_path / "store.sqlite3")
    assert service.check(proof) != []


def test_nobody_gets_a_proof_about_nobody(store: Store) -> None:
    service = RetentionService(store)
    for owner in (
        Owner(OwnerKind.ORG, "org-1", "acme", 1.0),
        Owner(OwnerKind.USER, "user-1", "ada", 1.0, None, "org-1"),
    ):
        store.people.insert(owner)
    user = "user-1"
    key = KeyService(store, b"pepper").create(BY, KeyDraft(name="k", org_id="org-1", user_id=user)).record.public_id
    for subject, status in ((f"key:{key}", 422), ("key:none", 404), ("user:ada", 404)):
        with pytest.raises(ApiError) as refused:
            service.erase(BY, subject)
        assert refused.value.status == status
    assert [entry.action for entry in store.audit.entries()] == ["key.create"]
    assert service.erase(BY, f"user:{user}")["payloads"] == 0


def test_a_row_from_before_an_erasure_can_never_be_read(store: Store, vault: Vault) -> None:
    service = RetentionService(store, vault)
    store.payloads.keep([plain("r1")], vault)
    with store.database.transaction() as transaction:
        store.payloads.destroy_key(transaction, "user:u1")  # and then a crash: the texts are still there
    with pytest.raises(ApiError, match="erased") as erased:
        service.show(BY, "r1")
    assert erased.value.status == 410
    assert store.payloads.sweep(0.0) == 1
    store.payloads.keep([plain("r1")], vault)
    assert service.show(BY, "r1")["request"] == "r"


def test_nothing_of_an_erased_data_key_is_left_in_the_file(tmp_path: Path, vault: Vault) -> None:
    from deepseek_gateway.storage.store import migrate_store, open_store

    path = tmp_path / "s.sqlite3"
    migrate_store(path, None)
    store = open_store(path, None)
    store.payloads.keep([plain("r1")], vault)
    wrapped = store.payloads.wrapped_key("user:u1")
    assert wrapped is not None
    files = lambda: b"".join(each.read_bytes() for each in tmp_path.glob("s.sqlite3*"))  # noqa: E731
    assert wrapped in files()
    RetentionService(store, vault).erase(BY, "user:u1")
    assert wrapped not in files()
    store.close()


def test_policies_are_set_for_what_is_there_and_audited(store: Store) -> None:
    service = RetentionService(store)
    key = KeyService(store, b"pepper").create(BY, KeyDraft(name="k")).record.public_id
    service.set_policy(BY, "key", key, Policy(30, True))
    service.set_policy(BY, "key", key, Policy(5, False))
    assert service.policies(BY) == {("key", key): Policy(5, False)}
    service.remove_policy(BY, "key", key)
    for call in (
        lambda: service.set_policy(BY, "org", "none", Policy(1, False)),
        lambda: service.set_policy(BY, "key", key, Policy(-1, False)),
        lambda: service.remove_policy(BY, "key", key),
    ):
        with pytest.raises(ApiError):
            call()
    acts = [entry.action for entry in store.audit.entries()]
    assert acts == ["key.create", "payload_policy.set", "payload_policy.set", "payload_policy.remove"]
