"""Keys at the door."""

import asyncio
import time

import pytest

from deepseek_gateway.errors import StoreUnavailableError
from deepseek_gateway.storage.keys import KeyTable
from deepseek_gateway.testing.stack import OPERATOR, Stack, running_stack


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer x", "Basic dsk_1", "dsk_x"])
async def test_no_good_key_is_a_401(stack: Stack, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    reply = await stack.caller.with_key(None).post(headers=headers)
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.error["type"] == "authentication_error"
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_mistyped_key_is_refused_without_a_look_up(stack: Stack, monkeypatch) -> None:
    def no_look_up(table: KeyTable, public_id: str) -> None:
        raise AssertionError(public_id)

    monkeypatch.setattr(KeyTable, "find", no_look_up)
    key = stack.running.key()
    swapped = key[:20] + ("a" if key[20] != "a" else "b") + key[21:]
    assert (await stack.caller.with_key(swapped).post()).status == 401


async def test_another_secret_under_a_known_id_is_a_401(stack: Stack) -> None:
    from deepseek_gateway.auth.keys import new_key

    stranger = new_key(stack.caller.key.split("_")[1])
    assert (await stack.caller.with_key(stranger.text).post()).status == 401
    assert (await stack.caller.post()).status == 200


async def test_a_revoked_key_is_refused_within_the_cache_time(state_dir) -> None:
    async with running_stack(state_dir, key_cache_ttl_s=0.2) as stack:
        assert (await stack.caller.post()).status == 200
        await asyncio.to_thread(stack.gateway.keys.revoke, OPERATOR, stack.caller.key.split("_")[1])
        async with asyncio.timeout(30):
            while (reply := await stack.caller.post()).status == 200:
                pass
        assert (reply.status, "revoked" in reply.error["message"]) == (401, True)


async def test_an_expired_key_is_refused(stack: Stack) -> None:
    valid, caller = stack.with_key(expires=time.time() + 3600), stack.with_key(expires=time.time() + 0.01)
    await asyncio.sleep(0.02)
    assert (await valid.post()).status == 200
    reply = await caller.post()
    assert (reply.status, "expired" in reply.error["message"]) == (401, True)


async def test_a_secret_whose_grace_is_over_is_told_apart_from_an_expired_key(state_dir) -> None:
    async with running_stack(state_dir, key_cache_ttl_s=0) as stack:
        old = stack.caller
        new = await asyncio.to_thread(stack.gateway.keys.rotate, OPERATOR, old.key_id, 3600)
        ended = time.time() - 1
        sql = "UPDATE api_keys SET previous_until = :ended WHERE public_id = :id"
        await asyncio.to_thread(stack.gateway.store.database.write, sql, {"ended": ended, "id": old.key_id})
        refused = await old.post()
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert "has a new secret, and the time that this one had left is over" in refused.error["message"]
        assert (await old.with_key(new.text).post()).status == 200


async def test_after_a_rotation_both_secrets_work_until_the_grace_is_over(state_dir) -> None:
    async with running_stack(state_dir, key_cache_ttl_s=0) as stack:
        public_id = stack.caller.key.split("_")[1]
        second = await asyncio.to_thread(stack.gateway.keys.rotate, OPERATOR, public_id, 3600)
        assert (await stack.caller.post()).status == 200
        assert (await stack.caller.with_key(second.text).post()).status == 200
        third = await asyncio.to_thread(stack.gateway.keys.rotate, OPERATOR, public_id, 0)
        assert [(await stack.caller.with_key(key).post()).status for key in (second.text, third.text)] == [401, 200]


async def test_a_key_with_an_allow_list_sees_and_uses_only_its_models(stack: Stack) -> None:
    stack.engine.models = ("fake-model", "other-model")
    caller = stack.with_key(models=("other-model",))
    assert [model["id"] for model in (await caller.get("/v1/models")).json["data"]] == ["other-model"]
    assert (await caller.get("/v1/models/fake-model")).status == 404
    assert (await caller.post(body={"prompt": "a", "model": "other-model"})).status == 200
    refused = await caller.post(body={"prompt": "a", "model": "fake-model"})
    assert (refused.status, refused.error["param"], refused.error["code"]) == (403, "model", "model_not_allowed")


async def test_without_a_model_in_the_body_a_key_gets_the_first_that_it_may_use(stack: Stack) -> None:
    stack.engine.models = ("fake-model", "other-model")
    (upstream,) = stack.gateway.pool.upstreams
    upstream.models = stack.engine.models
    stack.gateway.pool.models_changed()
    caller = stack.with_key(models=("other-model",))
    assert (await caller.post(body={"prompt": "a"})).json["model"] == "other-model"
    assert (await stack.with_key(models=("nothing",)).post(body={"prompt": "a"})).status == 403


@pytest.mark.parametrize(
    ("allowed", "model", "status"),
    [
        (("fake-model:*",), "fake-model:alice", 200),
        (("fake-model:alice",), "fake-model:alice", 200),
        (None, "fake-model:alice", 200),
        (("fake-model:bob",), "fake-model:alice", 403),
        (("fake-model",), "fake-model:alice", 403),
        (("fake-model:*",), "fake-model", 403),
        (("other-model:*",), "fake-model:alice", 403),
        (("fake-model:*",), "fake-model:", 403),
    ],
)
async def test_an_adapter_is_allowed_by_its_name_or_its_bases_wildcard(
    stack: Stack, allowed: tuple[str, ...] | None, model: str, status: int
) -> None:
    stack.engine.models = ("fake-model", "fake-model:alice")
    assert (await stack.with_key(models=allowed).post(body={"prompt": "a", "model": model})).status == status


async def test_without_a_model_the_engines_default_counts_for_the_allow_list(stack: Stack) -> None:
    assert (await stack.with_key(models=("other-model",)).post()).status == 403
    assert (await stack.with_key(models=("fake-model",)).post()).status == 200
    assert stack.engine.bodies[-1]["model"] == "fake-model"
    assert (await stack.row()).model == "fake-model"


async def test_admin_keys_administer_and_inference_keys_infer(stack: Stack) -> None:
    admin = stack.with_key(scopes=["admin"])
    assert (await admin.post()).status == 403
    assert (await admin.get("/v1/models")).status == 403
    assert (await stack.caller.get("/admin/keys")).status == 403
    await stack.caller.post()
    await stack.row()
    listed = (await admin.get("/admin/keys")).json["data"]
    assert {tuple(key["scopes"]) for key in listed} == {("admin-read", "admin-write"), ("inference",)}
    assert "hash" not in str(listed)
    (total,) = (await admin.get("/admin/usage")).json["data"]
    assert (total["requests"], total["total_tokens"]) == (1, 11)


async def test_a_key_is_used_only_from_its_networks(state_dir) -> None:
    async with running_stack(state_dir, trusted_proxies="127.0.0.0/8") as stack:
        caller = stack.with_key(cidrs=["192.0.2.0/24"])

        async def status(forwarded: str | None) -> int:
            return (await caller.post(headers={} if forwarded is None else {"x-forwarded-for": forwarded})).status

        assert await status("192.0.2.7") == 200
        assert await status("::ffff:192.0.2.7") == 200
        assert [await status(seen) for seen in (None, "198.51.100.1", "192.0.2.7, 198.51.100.1", "x")] == [403] * 4
        refused = await caller.post(headers={"x-forwarded-for": "198.51.100.1"})
        assert refused.error["code"] == "address_not_allowed"
        assert "198.51.100.1" in refused.error["message"]
        assert "192.0.2" not in refused.error["message"]
        assert (await stack.with_key(cidrs=[]).post(headers={"x-forwarded-for": "192.0.2.7"})).status == 403


async def test_without_trusted_proxies_a_forwarded_address_counts_for_nothing(stack: Stack) -> None:
    headers = {"x-forwarded-for": "192.0.2.7"}
    assert (await stack.with_key(cidrs=["192.0.2.0/24"]).post(headers=headers)).status == 403
    assert (await stack.with_key(cidrs=["127.0.0.0/8"]).post(headers=headers)).status == 200


async def test_using_a_key_is_noted(stack: Stack) -> None:
    record = stack.gateway.store.keys.find
    assert record(stack.caller.key_id).last_used is None
    before = time.time()
    await stack.caller.post()
    await stack.gateway.last_used.flush()
    assert before <= record(stack.caller.key_id).last_used <= time.time()


async def test_a_store_that_cannot_be_read_is_a_503(stack: Stack, monkeypatch) -> None:
    def broken(table: KeyTable, public_id: str) -> None:
        raise StoreUnavailableError("disk I/O error")

    monkeypatch.setattr(KeyTable, "find", broken)
    reply = await stack.caller.with_key(stack.running.key()).post()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
