"""Hot reload: a sound file is put in force, a broken one changes nothing, and running streams never notice."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from deepseek_gateway.config.sources import CONFIG_NAME
from deepseek_gateway.policy.snapshot import compile_snapshot
from deepseek_gateway.settings import ConfigSource
from deepseek_gateway.testing.caller import Caller, next_event, until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess, make_state
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import RunningGateway, running_gateway

STREAM = {"prompt": "a", "stream": True, "fake": {"tokens": 3, "gated": True}}


def write(path: Path, *urls: str, **settings: Any) -> None:
    """A configuration with engines `e0`, `e1`, …; replaced in one step, as careful editors do."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    for at, url in enumerate(urls):
        lines += ["[[upstreams]]", f'name = "e{at}"', f'url = "{url}"']
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines))
    fresh.replace(path)


@dataclass(frozen=True)
class Live:
    """A gateway whose engines stand in a file."""

    file: Path
    engines: list[FakeEngine]
    urls: list[str]
    running: RunningGateway
    caller: Caller

    async def ready(self) -> dict[str, Any]:
        return (await self.caller.get("/ready")).json

    async def metrics(self) -> str:
        return (await self.caller.get("/metrics")).body.decode()


@pytest.fixture
def file(state_dir: Path) -> Path:
    """The configuration of the state directory."""
    state_dir.mkdir()
    return state_dir / CONFIG_NAME


@pytest.fixture
async def live(state_dir: Path, file: Path) -> AsyncIterator[Live]:
    engines = [FakeEngine(), FakeEngine()]
    async with contextlib.AsyncExitStack() as cleanup:
        served = [await cleanup.enter_async_context(serving(engine)) for engine in engines]
        urls = [one.url for one in served]
        write(file, urls[0], reload_poll_s=3600.0)
        running = await cleanup.enter_async_context(running_gateway(state_dir))
        session = await cleanup.enter_async_context(aiohttp.ClientSession())
        ready = Live(file, engines, urls, running, Caller(session, running.url, running.key()))
        while 'config_reloads_total{result="unchanged"}' not in await ready.metrics():
            pass  # the watch begins with a reading of its own
        yield ready


async def test_a_stream_goes_on_at_an_engine_that_a_reload_removes_and_its_connection_closes_then(live: Live) -> None:
    gateway, (old, new) = live.running.gateway, live.engines
    before = await live.ready()
    (leaving,) = gateway.pool.upstreams
    old.allow()
    async with live.caller.open("/v1/generate", STREAM) as answer:
        assert "w1" in await next_event(answer)
        write(live.file, live.urls[1])
        assert await gateway.reload()
        assert (await live.ready())["config"] != before["config"]
        assert (await live.caller.post()).status == 200  # new requests go to the new engine
        assert len(new.finished) == 1
        assert not leaving.client.is_closed
        old.allow(2)
        rest = (await answer.read()).decode()
        assert "w3" in rest
        assert "[DONE]" in rest
    await until(lambda: leaving.client.is_closed)


async def test_engines_that_stay_keep_their_state_and_live_settings_change(live: Live) -> None:
    gateway = live.running.gateway
    (kept,) = gateway.pool.upstreams
    write(live.file, *live.urls, max_body_bytes=2000)
    assert await gateway.reload()
    assert gateway.pool.upstreams[0] is kept
    assert len(gateway.pool.upstreams) == 2
    assert (await live.caller.post(body={"prompt": "a" * 3000})).status == 413
    text = live.file.read_text()
    live.file.write_text(text + '\n[[models]]\nname = "chat"\ntargets = [{upstream = "e1", model = "fake-model"}]\n')
    assert await gateway.reload()
    assert (await live.caller.post(body={"prompt": "a", "model": "chat"})).json["model"] == "chat"
    assert len(live.engines[1].finished) == 1
    assert "config_reloads_total{" in await live.metrics()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = [", "this is no TOML"),
        ("max_request = 1", "did you mean max_requests?"),
        ("max_requests = 1", "upstreams is empty"),
        ('[[upstreams]]\nurl = "http://h"\n[[models]]\nname = "m"\ntargets = [{upstream = "x"}]', "no upstream 'x'"),
    ],
)
async def test_a_broken_file_changes_nothing_and_everybody_is_told(live: Live, caplog, text: str, said: str) -> None:
    gateway = live.running.gateway
    before = gateway.snapshot
    live.file.write_text(text)
    assert not await gateway.reload()
    assert gateway.snapshot is before
    assert said in caplog.text
    told = await live.ready()
    assert told["config"] == before.version
    assert "broken" in told["faults"][0]
    metrics = await live.metrics()
    assert "deepseek_gateway_config_stale 1.0" in metrics
    assert 'deepseek_gateway_config_reloads_total{result="failed"} 1.0' in metrics
    assert (await live.caller.post()).status == 200
    write(live.file, live.urls[0])
    assert await gateway.reload()
    assert "faults" not in await live.ready()
    assert "deepseek_gateway_config_stale 0.0" in await live.metrics()


async def test_what_only_a_start_can_change_keeps_its_value_and_the_log_says_so(live: Live, caplog) -> None:
    gateway = live.running.gateway
    write(live.file, live.urls[0], port=9, key_cache_ttl_s=1.0, max_requests=7)
    assert await gateway.reload()
    assert gateway.settings.port != 9
    assert gateway.settings.max_requests == 7
    assert "at the next start only: port, key_cache_ttl_s" in caplog.text


async def test_prices_are_read_again_and_broken_ones_change_nothing(live: Live, caplog) -> None:
    prices, gateway = live.file.with_name("prices.toml"), live.running.gateway

    def price(output: int, currency: str = "USD") -> None:
        row = f'model = "fake-*"\ninput_cache_hit = 0\ninput_cache_miss = 0\noutput = {output}\n'
        prices.write_text(f'currency = "{currency}"\n[[price]]\n{row}')

    async def costs() -> list[int]:
        assert (await live.caller.post(body={"prompt": "a", "fake": {"tokens": 2}})).status == 200
        await gateway.ledger.flush()
        return [row.cost_nano for row in gateway.store.ledger.rows()]

    price(5)
    write(live.file, live.urls[0], prices=str(prices))
    assert await gateway.reload()
    assert await costs() == [10]
    version = gateway.snapshot.version
    price(7)
    assert await gateway.reload()
    assert gateway.snapshot.version != version
    assert await costs() == [10, 14]
    price(-1)
    assert not await gateway.reload()
    assert "prices.toml: price[0].output" in caplog.text
    price(9, "CNY")
    assert not await gateway.reload()
    assert "the currency CNY instead of USD needs a start" in caplog.text
    assert await costs() == [10, 14, 14]


async def test_changed_prices_are_noticed_without_a_signal(state_dir: Path, file: Path) -> None:
    prices = file.with_name("prices.toml")
    prices.write_text('currency = "USD"\n')
    async with serving(FakeEngine()) as served:
        write(file, served.url, reload_poll_s=0.02, prices=str(prices))
        async with running_gateway(state_dir) as running:
            row = 'model = "m"\ninput_cache_hit = 0\ninput_cache_miss = 0\noutput = 1\n'
            await asyncio.to_thread(prices.write_text, f'currency = "USD"\n[[price]]\n{row}')
            await until(lambda: running.gateway.prices.find("m", 0.0) is not None)


async def test_a_broken_configuration_is_in_force_once_what_it_lacks_is_there(
    state_dir: Path, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prices, secret = tmp_path / "prices.toml", tmp_path / "secret"
    prices.write_text("currency = ")
    async with serving(FakeEngine()) as engine:
        write(file, engine.url, reload_poll_s=0.1)
        async with running_gateway(state_dir) as running:
            gateway = running.gateway
            write(
                file, engine.url, reload_poll_s=0.1, max_requests=9, prices=str(prices), upstream_key=f"file:{secret}"
            )
            await until(lambda: "secret" in (gateway.config_fault or ""))
            secret.write_text("s3cret")
            await until(lambda: "prices.toml" in (gateway.config_fault or ""))
            prices.write_text('currency = "USD"')
            await until(lambda: gateway.settings.max_requests == 9)
            assert gateway.config_fault is None
    broken = [record.message for record in caplog.records if "configuration is broken" in record.message]
    assert len(broken) == len(set(broken))  # each fault is told once, however often it is found


async def test_a_changed_file_is_noticed_without_a_signal(state_dir: Path, file: Path) -> None:
    engine = FakeEngine()
    async with serving(engine) as served:
        write(file, served.url, reload_poll_s=0.02)
        async with running_gateway(state_dir) as running:
            write(file, served.url, reload_poll_s=0.02, max_requests=3)
            await until(lambda: running.gateway.settings.max_requests == 3)
            await asyncio.to_thread(file.write_text, "nonsense")
            await until(lambda: running.gateway.config_fault is not None)
            write(file, served.url, reload_poll_s=0.02, upstream_key="secret")
            await until(lambda: "chmod 600" in (running.gateway.config_fault or ""))
            await asyncio.to_thread(file.chmod, 0o600)
            await until(lambda: running.gateway.config_fault is None)
            write(file, served.url, reload_poll_s=0.02, max_requests=4)
            await until(lambda: running.gateway.settings.max_requests == 4)
            assert running.gateway.config_fault is None


async def test_many_reloads_under_load_lose_no_request_and_leave_no_connection(live: Live) -> None:
    gateway = live.running.gateway
    seen = {id(upstream): upstream for upstream in gateway.pool.upstreams}
    body = {"prompt": "a", "stream": True, "fake": {"tokens": 3, "delay_s": 0.002}}
    for turn in range(8):
        asking = [asyncio.create_task(live.caller.post(body=body)) for _ in range(6)]
        await asyncio.sleep(0)
        write(live.file, live.urls[turn % 2], max_requests=100 + turn)
        assert await gateway.reload()
        seen |= {id(upstream): upstream for upstream in gateway.pool.upstreams}
        for reply in await asyncio.gather(*asking):
            assert b"[DONE]" in reply.body
    await until(lambda: gateway.running == 0)
    (current,) = gateway.pool.upstreams
    await until(lambda: all(one.client.is_closed for one in seen.values() if one is not current))
    assert not current.client.is_closed


def test_sighup_reloads_a_running_gateway(state_dir: Path) -> None:
    key = make_state(state_dir)
    file = state_dir / CONFIG_NAME
    with RunningProcess(FAKE_ENGINE) as one, RunningProcess(FAKE_ENGINE) as two:
        urls = [one.line("http"), two.line("http")]
        write(file, urls[0], reload_poll_s=3600.0)
        serve = ("serve", "--state", str(state_dir), "--port", "0")
        with RunningProcess([*GATEWAY, *serve]) as gateway:
            url = gateway.line("listening on").split()[-1]
            write(file, urls[1], reload_poll_s=3600.0)
            gateway.signal(signal.SIGHUP)
            gateway.error_line("is in force instead of")
            answer = httpx.post(f"{url}/generate", json={"prompt": "a"}, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
            assert httpx.get(f"{urls[1]}/fake/truth").json()["total_tokens"] > 0
            assert httpx.get(f"{urls[0]}/fake/truth").json()["total_tokens"] == 0
            gateway.signal()
            assert gateway.wait() == 0


def test_the_version_changes_with_every_value_and_with_secrets_only_under_the_pepper(
    tmp_path: Path, monkeypatch
) -> None:
    def version(pepper: bytes = b"pepper", **flags: object) -> str:
        flags = {"state_dir": tmp_path, "upstreams": "http://h:1", **flags}
        return compile_snapshot(ConfigSource(None, flags).load(), pepper).version

    assert version() == version()
    assert version(max_requests=5) != version()
    assert version(upstream_key="one") != version(upstream_key="two")
    assert version(b"", upstream_key="one") == version(b"", upstream_key="two")
    assert len(version()) == 12
