"""What a killed gateway held in Redis: it counts until its lease ends, then is free, and its journal corrects it."""

import asyncio
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import aiohttp
import redis

from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.limits.drafts import LimitDraft
from deepseek_gateway.limits.service import LimitService
from deepseek_gateway.people.service import OrgDraft, PeopleService
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.postgres import PostgresServer
from deepseek_gateway.testing.processes import GATEWAY, RunningProcess
from deepseek_gateway.testing.serving import serving

SLOTS, TOKENS, LEASE_S = 3, 10_000, 15
PEPPER = "p" * 43
OPERATOR = Principal.operator()


class Books:
    """What Redis knows of one organisation."""

    def __init__(self, url: str, org: str) -> None:
        self.client: Any = redis.from_url(url, decode_responses=True)
        self.prefix = f"dsg:{{{org}}}:"

    def leases(self) -> dict[str, float]:
        """Requests that run, and the second that their leases end."""
        return {name: ends / 1e6 for name, ends in self.client.zrange(f"{self.prefix}leases", 0, -1, withscores=True)}

    def now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6

    def end(self, leases: dict[str, float]) -> None:
        """Let the time of leases pass."""
        self.client.zadd(f"{self.prefix}leases", dict.fromkeys(leases, 0))

    def held(self) -> int:
        """Tokens that running requests hold."""
        return sum(int(self.client.hget(name, "t")) for name in self.client.scan_iter(f"{self.prefix}r:*"))

    def orphans(self) -> int:
        return len(list(self.client.scan_iter(f"{self.prefix}o:*")))

    def spent(self) -> tuple[int, int]:
        """Of the day's budget: what is used, and what is held."""
        windows = (name for name in self.client.scan_iter(f"{self.prefix}m:*") if self.client.type(name) == "hash")
        (window,) = [self.client.hgetall(name) for name in windows]
        return int(window["u"]), int(window.get("h", "0"))


async def open_stream(session: aiohttp.ClientSession, url: str, key: str) -> aiohttp.ClientResponse:
    """Begin an answer whose words the engine holds back."""
    body = {"messages": [{"role": "user", "content": "a"}], "stream": True, "fake": {"tokens": 5, "gated": True}}
    return await session.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})


async def test_what_a_killed_gateway_held_counts_until_its_lease_ends_and_is_corrected_when_it_is_back(
    tmp_path: Path, postgres: PostgresServer, redis_url: str
) -> None:
    store_url = await asyncio.to_thread(postgres.new_database)
    env = {"GATEWAY_STORE_URL": store_url, "GATEWAY_REDIS_URL": redis_url, "GATEWAY_KEY_PEPPER": PEPPER}
    env |= {"GATEWAY_REDIS_LEASE_S": str(LEASE_S), "GATEWAY_REDIS_BEAT_S": "0.1", "GATEWAY_REDIS_TIMEOUT_S": "5"}
    settings = load_settings(state_dir=tmp_path / "one", key_pepper=PEPPER, store_url=store_url)
    await asyncio.to_thread(prepare_state, settings)
    store, pepper = await asyncio.to_thread(open_store, settings)
    org = PeopleService(store).create_org(OPERATOR, OrgDraft(name="acme")).id
    key = KeyService(store, pepper).create(OPERATOR, KeyDraft(name="k", org_id=org)).text
    for kind, limit in (("tokens_per_day", TOKENS), ("concurrent_requests", SLOTS)):
        LimitService(store).set(OPERATOR, LimitDraft(kind=kind, limit=limit, org_id=org))
    engine, books = FakeEngine(), Books(redis_url, org)
    async with AsyncExitStack() as stack:
        stack.callback(postgres.drop_database, store_url)
        stack.enter_context(closing(store))
        stack.enter_context(closing(books.client))
        served = await stack.enter_async_context(serving(engine))
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def gateway(name: str) -> tuple[RunningProcess, str]:
            command = [*GATEWAY, "serve", "--state", str(tmp_path / name), "--port", "0", "--upstream", served.url]
            running = stack.enter_context(RunningProcess(command, env))
            return running, (await asyncio.to_thread(running.line, "listening on")).split()[-1]

        (doomed, url), (other, other_url) = await asyncio.gather(gateway("one"), gateway("two"))
        for _ in range(SLOTS):
            await open_stream(session, url, key)
        doomed.process.kill()
        await until(lambda: not engine.running)
        leases, held = books.leases(), books.held()
        assert len(leases) == SLOTS
        assert max(leases.values()) <= books.now() + LEASE_S
        assert books.spent() == (0, held)
        assert (await open_stream(session, other_url, key)).status == 429

        books.end(leases)
        running = [await open_stream(session, other_url, key) for _ in range(SLOTS + 1)]
        assert [answer.status for answer in running] == [200] * SLOTS + [429]
        assert not books.leases().keys() & leases.keys()
        assert books.orphans() == SLOTS
        assert books.spent()[0] == held  # the most that they can have used, as nobody knows better yet

        engine.allow(SLOTS * 5)
        for answer in running:
            await answer.read()
        again, _ = await gateway("one")
        await until(lambda: not books.orphans(), timeout_s=30)
        for process in (again, other):
            process.signal()
            assert await asyncio.to_thread(process.wait) == 0
        rows = store.ledger.rows()
        assert len(rows) == 2 * SLOTS
        assert books.spent() == (sum(row.tokens.total for row in rows), 0)
        assert 0 < sum(row.tokens.total for row in rows) <= engine.truth.total
