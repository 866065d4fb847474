"""Three gateway processes, one Redis, one PostgreSQL, many callers who leave when they like, and a kill -9."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import redis

from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.ledger.recovery import CRASHED
from deepseek_gateway.limits.drafts import LimitDraft
from deepseek_gateway.limits.service import LimitService
from deepseek_gateway.money.service import BalanceService, TopUpDraft
from deepseek_gateway.people.service import OrgDraft, PeopleService
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.testing.processes import GATEWAY, RunningProcess
from deepseek_gateway.testing.redis_server import RedisServer
from deepseek_gateway.testing.serving import serving

TOKENS = 2500
REQUESTS_AT_A_TIME = 10
NANO = 1000
CALLERS = 24
PEPPER = "p" * 43
OPERATOR = Principal.operator()


@dataclass
class Scene:
    """What a test plays with."""

    engine: FakeEngine
    processes: list[RunningProcess]
    urls: list[str]
    commands: list[list[str]]
    env: dict[str, str]
    store: Store
    org: str
    keys: list[str]
    worst: tuple[int, int] = (0, 0)

    @property
    def at_engine(self) -> tuple[int, int]:
        """The engine's own truth: tokens of all requests, and how many run."""
        running = sum(job.counts.total for job in self.engine.running.values())
        return self.engine.truth.total + running, len(self.engine.running)

    async def watch(self) -> None:
        """Ask the engine at every instant, as near as that goes."""
        while True:
            tokens, running = self.at_engine
            self.worst = max(self.worst[0], tokens), max(self.worst[1], running)
            await asyncio.sleep(0.002)


@pytest.fixture
async def scene(tmp_path: Path, postgres: PostgresServer, shared_redis: RedisServer) -> AsyncIterator[Scene]:
    shared_redis.flush()
    prices = tmp_path / "prices.toml"
    one = "".join(f"{name} = {NANO}\n" for name in ("input_cache_hit", "input_cache_miss", "output"))
    prices.write_text(f'currency = "USD"\n[[price]]\nmodel = "*"\n{one}')
    env = {
        "GATEWAY_REDIS_URL": shared_redis.url, "GATEWAY_KEY_PEPPER": PEPPER, "GATEWAY_PRICES": str(prices),
        "GATEWAY_REDIS_LEASE_S": "3", "GATEWAY_REDIS_BEAT_S": "0.1", "GATEWAY_REDIS_TIMEOUT_S": "5",
        "GATEWAY_OVERRUN_TOKENS": "64", "GATEWAY_WEB": "false",
    }  # fmt: skip
    states = [tmp_path / f"g{number}" for number in range(3)]
    store_url = env["GATEWAY_STORE_URL"] = await asyncio.to_thread(postgres.new_database)
    settings = load_settings(state_dir=states[0], key_pepper=PEPPER, store_url=store_url)
    await asyncio.to_thread(prepare_state, settings)
    store, pepper = await asyncio.to_thread(open_store, settings)
    engine = FakeEngine()
    async with AsyncExitStack() as stack:
        stack.callback(postgres.drop_database, store_url)
        stack.enter_context(closing(store))
        served = await stack.enter_async_context(serving(engine))
        org = PeopleService(store).create_org(OPERATOR, OrgDraft(name="acme")).id
        keys = [KeyService(store, pepper).create(OPERATOR, KeyDraft(name="k", org_id=org)).text for _ in range(3)]
        for kind, limit in (("tokens_per_month", TOKENS), ("concurrent_requests", REQUESTS_AT_A_TIME)):
            LimitService(store).set(OPERATOR, LimitDraft(kind=kind, limit=limit, org_id=org))
        BalanceService(store, "USD").top_up(OPERATOR, TopUpDraft(amount="0.1", org_id=org))
        commands = [
            [*GATEWAY, "serve", "--state", str(state), "--port", "0", "--upstream", served.url] for state in states
        ]
        processes = [stack.enter_context(RunningProcess(command, env)) for command in commands]
        urls = [(await asyncio.to_thread(each.line, "listening on")).split()[-1] for each in processes]
        yield Scene(engine, processes, urls, commands, env, store, org, keys)


async def call(scene: Scene, session: aiohttp.ClientSession, dice: random.Random, is_over: asyncio.Event) -> None:
    """One caller: asks again and again, leaves many answers, until a budget is used up."""
    while not is_over.is_set():
        fake = {"tokens": dice.randrange(1, 120), "delay_s": 0.01, "prompt_tokens": 1}
        body = {"prompt": "a", "stream": dice.random() < 0.8, "max_tokens": 120, "fake": fake}
        headers = {"authorization": f"Bearer {dice.choice(scene.keys)}"}
        patience = dice.uniform(0.02, 1.5) if dice.random() < 0.5 else 20
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(patience):
                url = f"{dice.choice(scene.urls)}/v1/generate"
                async with session.post(url, json=body, headers=headers) as answer:
                    text = await answer.read()
                    if b"insufficient_balance" in text:
                        is_over.set()
                    assert answer.status in {200, 402, 429, 503}, text
        await asyncio.sleep(dice.uniform(0, 0.05))


async def test_limits_hold_at_every_instant_and_all_is_billed_and_nothing_stays_held(scene: Scene) -> None:
    watching = asyncio.create_task(scene.watch())
    is_over = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        callers = [asyncio.create_task(call(scene, session, random.Random(seed), is_over)) for seed in range(CALLERS)]
        await until(lambda: len(scene.engine.finished) > 8)
        await until(lambda: len(scene.engine.running) > 3)
        scene.processes[0].process.kill()
        async with asyncio.timeout(60):
            await asyncio.gather(*callers)
    await until(lambda: not scene.engine.running, timeout_s=30)
    watching.cancel()
    tokens, running = scene.worst
    assert tokens <= TOKENS
    assert running <= REQUESTS_AT_A_TIME
    assert tokens > TOKENS // 2
    with RunningProcess(scene.commands[0], scene.env) as again:  # it reads its journal
        await asyncio.to_thread(again.line, "listening on")
        await until(lambda: is_at_rest(scene), timeout_s=30)
        for process in (again, *scene.processes[1:]):
            process.signal()
            assert await asyncio.to_thread(process.wait) == 0
    rows = scene.store.ledger.rows()
    cut = [row for row in rows if row.end_reason == CRASHED]
    billed = sum(row.tokens.total for row in rows if row.end_reason != CRASHED)
    # Who leaves is aborted; only what the killed gateway ran ended by its connection alone.
    lost = [done for done in scene.engine.finished if done.finish == "disconnect"]
    known = [done for done in scene.engine.finished if done.finish != "disconnect"]
    assert len(cut) >= len([done for done in lost if done.counts.total])
    assert sum(row.tokens.total for row in rows) <= scene.engine.truth.total
    if len(cut) == len(lost):  # nothing of it had come to its end between two lines of the journal
        assert billed == sum(done.counts.total for done in known)
    balance = scene.store.balances.find(f"org:{scene.org}")
    assert balance is not None
    assert balance.spent_nano == sum(row.cost_nano for row in rows) == NANO * sum(row.tokens.total for row in rows)


def is_at_rest(scene: Scene) -> bool:
    """Whether Redis holds nothing any more, and has spent what the ledger says."""
    month = f"dsg:{{{scene.org}}}:m:lim_*"
    spent = sum(row.tokens.total for row in scene.store.ledger.rows())
    with redis.from_url(scene.env["GATEWAY_REDIS_URL"], decode_responses=True) as client:
        if list(client.scan_iter("dsg:*:r:*")) or list(client.scan_iter("dsg:*:o:*")):
            return False
        windows = [client.hgetall(key) for key in client.scan_iter(month) if client.type(key) == "hash"]
    return [(window["u"], window.get("h", "0")) for window in windows] == [(str(spent), "0")]
