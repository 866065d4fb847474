"""Whom the gateway can speak to: servers of other makers, the cloud for those who opted in, engines behind TLS."""

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from deepseek_gateway.config.sources import CONFIG_NAME
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.policy.snapshot import compile_snapshot
from deepseek_gateway.settings import ConfigSource
from deepseek_gateway.testing.caller import Caller, next_event, until
from deepseek_gateway.testing.certificates import Authority
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.other_servers import PROMPT_TOKENS, Maker, OtherServer
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import RunningGateway, running_gateway

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@contextlib.asynccontextmanager
async def behind(
    state_dir: Path, *upstreams: dict[str, object], **settings: object
) -> AsyncIterator[tuple[RunningGateway, Caller]]:
    """A gateway before these upstreams, and a caller."""
    settings = {"upstream_probe_s": 0.05, **settings}
    async with running_gateway(state_dir, *upstreams, **settings) as running, aiohttp.ClientSession() as session:
        yield running, Caller(session, running.url, running.key())


@pytest.mark.parametrize("maker", ["vllm", "sglang"])
async def test_a_server_of_another_maker_is_billed_by_its_usage_at_the_end(state_dir: Path, maker: Maker) -> None:
    server = OtherServer(maker)
    async with (
        serving(server) as at,
        behind(state_dir, {"name": maker, "url": f"{at.url}/v1", "kind": "openai"}) as (running, caller),
    ):
        whole = await caller.post("/v1/chat/completions", CHAT)
        assert whole.json["choices"][0]["message"]["content"] == "w1 w2 w3"
        stream = await caller.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream.chunks) == "w1w2w3"
        assert all(chunk.get("usage") is None for chunk in stream.chunks)  # nobody asked for it
        assert server.bodies[1]["stream_options"] == {"include_usage": True}
        for row in await running.rows(2):
            assert (row.prompt_tokens, row.completion_tokens, row.accuracy) == (PROMPT_TOKENS, 3, "exact")
            assert row.upstream == maker
        assert "x-cache-salt" not in server.headers[0]


async def test_a_caller_that_leaves_such_a_server_cuts_it_off_and_is_billed_an_estimate(state_dir: Path) -> None:
    server = OtherServer("vllm")
    async with (
        serving(server) as at,
        behind(state_dir, {"name": "v", "url": at.url, "kind": "openai"}, keep_alive_s=0.2) as (running, caller),
    ):
        server.gate.clear()
        async with caller.open("/v1/chat/completions", {**CHAT, "stream": True}) as answer:
            server.gate.set()
            await next_event(answer)
            await next_event(answer)
            server.gate.clear()
            answer.close()
        await until(lambda: running.gateway.running == 0)
        (row,) = await running.rows(1)
        assert (row.status, row.accuracy) == ("cancelled", "estimated")
        await until(lambda: running.gateway.pool.upstreams[0].in_flight == 0)


async def test_generate_is_refused_by_name_where_no_server_has_it(state_dir: Path) -> None:
    server = OtherServer("sglang")
    async with serving(server) as at, behind(state_dir, {"url": at.url, "kind": "openai"}) as (_, caller):
        refused = await caller.post("/v1/generate", {"prompt": "a"})
        assert (refused.status, refused.error["code"]) == (400, "unsupported_route")
        assert "/v1/chat/completions" in refused.error["message"]
        assert server.bodies == []


class Cloud:
    """An engine of ours and an account in the cloud behind one name."""

    def __init__(self, engine: FakeEngine, cloud: OtherServer, running: RunningGateway, caller: Caller) -> None:
        self.engine, self.cloud, self.running, self.caller = engine, cloud, running, caller


@pytest.fixture
async def with_cloud(state_dir: Path) -> AsyncIterator[Cloud]:
    engine, cloud = (
        FakeEngine(models=("ours",)),
        OtherServer("deepseek-cloud", models=("deepseek-chat",), api_key="sk-1"),
    )
    async with serving(engine) as here, serving(cloud) as there:
        upstreams: list[dict[str, object]] = [
            {"name": "gpu", "url": here.url, "capacity": 1},
            {
                "name": "cloud",
                "url": there.url,
                "kind": "deepseek-cloud",
                "key": "sk-1",
                "model_capacity": {"deepseek-chat": 1},
            },
        ]
        targets = [{"upstream": "gpu", "model": "ours"}, {"upstream": "cloud", "model": "deepseek-chat", "tier": 1}]
        models = [{"name": "chat", "targets": targets}]
        async with behind(state_dir, *upstreams, models=models, queue_timeout_s=0.2, keep_alive_s=0.2) as (
            running,
            caller,
        ):
            yield Cloud(engine, cloud, running, caller)


async def test_the_cloud_never_sees_a_prompt_of_a_key_that_has_not_opted_in(with_cloud: Cloud) -> None:
    caller, pool = with_cloud.caller, with_cloud.running.gateway.pool
    only_there = await caller.post("/v1/chat/completions", {**CHAT, "model": "deepseek-chat"})
    assert (only_there.status, only_there.error["code"]) == (403, "cloud_not_allowed")
    with_cloud.engine.is_ready = False
    await until(lambda: not pool.upstreams[0].is_up)
    for stream in (True, False):
        down = await caller.post("/v1/chat/completions", {**CHAT, "model": "chat", "stream": stream})
        assert (down.status, down.error["code"]) == (503, "upstream_unavailable")
    assert "deepseek-chat" not in [model["id"] for model in (await caller.get("/models")).json.get("data", [])]
    assert with_cloud.cloud.bodies == []


async def test_a_key_that_has_opted_in_falls_back_to_the_cloud_under_a_hash(with_cloud: Cloud) -> None:
    running, cloud = with_cloud.running, with_cloud.cloud
    caller = with_cloud.caller.with_key(running.key(tags=["allow-cloud"]))
    assert (await caller.post("/v1/chat/completions", {**CHAT, "model": "chat"})).json["model"] == "chat"
    assert cloud.bodies == []  # ours comes first
    with_cloud.engine.is_ready = False
    await until(lambda: not running.gateway.pool.upstreams[0].is_up)
    whole = await caller.post("/v1/chat/completions", {**CHAT, "model": "chat"})
    assert (whole.status, whole.json["model"]) == (200, "chat")
    stream = await caller.post("/v1/chat/completions", {**CHAT, "model": "chat", "stream": True})
    assert {chunk["model"] for chunk in stream.chunks} == {"chat"}
    fim = await caller.post("/v1/completions", {"prompt": "a", "suffix": "b", "model": "chat"})
    assert fim.status == 200
    assert cloud.paths == ["/v1/chat/completions", "/v1/chat/completions", "/beta/completions"]
    (tenant,) = {body["user_id"] for body in cloud.bodies}
    assert len(tenant) == 32
    assert caller.key_id not in json.dumps([cloud.bodies, cloud.headers])
    row = (await running.rows(4))[2]
    assert (row.model, row.upstream, row.completion_tokens, row.accuracy) == ("chat", "cloud", 3, "exact")
    assert {(each.upstream, each.served_model) for each in await running.rows(4)} == {
        ("gpu", "ours"),
        ("cloud", "deepseek-chat"),
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_the_cloud_names_the_model_as_the_caller_does(with_cloud: Cloud, stream: bool) -> None:
    running = with_cloud.running
    with_cloud.cloud.unknown = ("deepseek-chat",)
    with_cloud.engine.is_ready = False
    await until(lambda: not running.gateway.pool.upstreams[0].is_up)
    caller = with_cloud.caller.with_key(running.key(tags=["allow-cloud"]))
    reply = await caller.post("/v1/chat/completions", {**CHAT, "model": "chat", "stream": stream})
    assert reply.status == 404
    assert reply.error["message"] == "Model `chat` does not exist. Use chat elsewhere, not deepseek-chat-mini."
    (row,) = await running.rows(1)
    assert (row.model, row.served_model, row.end_reason) == ("chat", "deepseek-chat", "rejected")


async def test_an_account_in_the_cloud_is_not_asked_for_more_than_it_may(with_cloud: Cloud) -> None:
    running, cloud = with_cloud.running, with_cloud.cloud
    caller = with_cloud.caller.with_key(running.key(tags=["allow-cloud"]))
    cloud.gate.clear()
    async with caller.open("/v1/chat/completions", {**CHAT, "model": "deepseek-chat", "stream": True}) as first:
        await until(lambda: len(cloud.bodies) == 1)
        late = await caller.post("/v1/chat/completions", {**CHAT, "model": "deepseek-chat"})
        assert (late.status, late.error["code"]) == (503, "queue_timeout")
        assert len(cloud.bodies) == 1
        cloud.gate.set()
        await first.read()
    assert (await caller.post("/v1/chat/completions", {**CHAT, "model": "deepseek-chat"})).status == 200


async def test_an_upstream_behind_mutual_tls_is_reached_with_our_certificate_only(
    state_dir: Path, tmp_path: Path
) -> None:
    authority, engine = Authority("test"), FakeEngine()
    certificate, key = authority.issue("localhost").write(tmp_path / "server")
    ours, our_key = authority.issue("gateway").write(tmp_path / "client")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = {
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key),
        "ssl_ca_certs": str(tmp_path / "ca.pem"),
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }
    async with serving(engine, tls=tls) as at:
        url = at.url.replace("http://127.0.0.1", "https://localhost")
        known = {"ca_file": str(tmp_path / "ca.pem"), "cert_file": str(ours), "key_file": str(our_key)}
        async with behind(state_dir, {"url": url, "tls": known}) as (_, caller):
            assert (await caller.post()).status == 200
        for some in ({"ca_file": known["ca_file"]}, {"cert_file": known["cert_file"], "key_file": known["key_file"]}):
            async with behind(state_dir, {"url": url, "tls": some}) as (_, caller):
                assert (await caller.post()).status == 503
    assert len(engine.bodies) == 1


def test_certificates_that_cannot_be_used_and_names_that_are_none_are_told_at_once(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "broken.pem").write_text("x")
    (state_dir / CONFIG_NAME).write_text(f'''
[[upstreams]]
name = "one"
url = "https://h"
tls.ca_file = "{state_dir}/broken.pem"

[[upstreams]]
name = "one"
url = "https://api.deepseek.com"
kind = "deepseek-cloud"
tags = ["away"]

[[models]]
name = "chat"
targets = [{{ upstream = "onee" }}, {{ tag = "awya" }}]
''')
    with pytest.raises(ConfigurationError) as told:
        compile_snapshot(ConfigSource(None, {"state_dir": state_dir}).load())
    assert [line.split(":")[0] for line in str(told.value).splitlines()] == [
        "upstreams",
        "upstream one",
        "model chat",
        "model chat",
        "upstream one",
    ]
    assert "did you mean one?" in str(told.value)
    assert "did you mean away?" in str(told.value)
