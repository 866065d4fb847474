"""kill -9 at every step of a request's books: nothing lost, nothing billed twice."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import aiohttp

from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.ledger.records import LedgerRow, TokenCounts
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state
from deepseek_gateway.storage.store import open_store as open_tables
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.chain import Chain
from deepseek_gateway.testing.fake_engine import FakeEngine
from deepseek_gateway.testing.serving import serving

CUT, CUT_IN_THE_STREAM = ("failed", "gateway_crash", "estimated", 0), ("failed", "gateway_crash", "estimated", 3)
WHOLE = ("finished", "stop", "exact", 3)
POINTS = {
    "before admit": None,
    "before sync": CUT,
    "after admit": CUT,
    "within recovery": None,
    "after send": CUT,
    "within stream": CUT_IN_THE_STREAM,
    "after observe": CUT_IN_THE_STREAM,
    "before settle": CUT_IN_THE_STREAM,
    "after settle": WHOLE,
    "within commit": WHOLE,
    "after commit": WHOLE,
}
"""Each point, and the row of its request: status, reason, accuracy, prompt tokens."""


OPERATOR = Principal.operator()


def make_keys(state: Path, store_url: str | None) -> dict[str, str]:
    """A migrated state with a key for each point, named so: it tells whose a row is."""
    settings = load_settings(state_dir=state, store_url=store_url)
    prepare_state(settings)
    store, pepper = open_store(settings)
    with closing(store):
        keys = KeyService(store, pepper)
        return {point: keys.create(OPERATOR, KeyDraft(name=point)).text for point in POINTS}


def environment(store_url: str | None) -> dict[str, str]:
    return {} if store_url is None else {"GATEWAY_STORE_URL": store_url}


def sound_rows(state: Path, store_url: str | None = None) -> list[LedgerRow]:
    """The ledger of a state that nobody serves; every row has its life in a sound log."""
    with closing(open_tables(state / "gateway.sqlite3", store_url)) as store:
        rows = store.ledger.rows()
        assert store.audit.verify()[1] is None
        assert store.lives.first_fault(store.audit.entries()) == (len(rows), None)
        assert all(store.lives.find(row.request_id) is not None for row in rows)
        return rows


async def ask(url: str, key: str, user: str) -> None:
    """A stream of a gateway that does not live to its end."""
    body = {"prompt": "a b c", "stream": True, "user": user, "fake": {"tokens": 5, "delay_s": 0.02}}
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
        with suppress(aiohttp.ClientError):
            async with session.post(f"{url}/generate", json=body) as answer:
                await answer.read()


@asynccontextmanager
async def chain_of(
    points: Iterable[str], state: Path, store_url: str | None
) -> AsyncIterator[tuple[Chain, FakeEngine]]:
    engine = FakeEngine()
    async with serving(engine) as served:
        chain = Chain(points, state, served.url, environment(store_url))
        with chain.running:
            yield chain, engine
            await chain.end()
        await until(lambda: not engine.running, timeout_s=30)


async def test_a_kill_at_any_point_leaves_one_right_row(state_dir: Path, store_url: str | None) -> None:
    keys = await asyncio.to_thread(make_keys, state_dir, store_url)
    async with chain_of(POINTS, state_dir, store_url) as (chain, engine):
        for point, key in keys.items():
            if point != "within recovery":  # this one does not come to listen
                await ask(await chain.url(), key, point)
            await chain.has_died(point)
    rows = await asyncio.to_thread(sound_rows, state_dir, store_url)
    of_key = {row.key_id: row for row in rows}
    assert len(of_key) == len(rows)
    truth = {done.user: done.counts for done in engine.finished}
    for point, expected in POINTS.items():
        row = of_key.pop(keys[point].split("_")[1], None)
        found = None if row is None else (row.status, row.end_reason, row.accuracy, row.prompt_tokens)
        assert found == expected, point
        if row is not None:
            counts = truth.get(point, TokenCounts())
            assert row.completion_tokens <= counts.completion
            assert expected != WHOLE or row.tokens == counts == TokenCounts(3, 5)
    assert not of_key


async def one_stream(session: aiohttp.ClientSession, url: str, dice: random.Random) -> str | None:
    """Ask for a stream; gives the request's id if all of it came."""
    body = {"prompt": "a b", "stream": True, "fake": {"tokens": dice.randrange(1, 60), "delay_s": 0.01}}
    try:
        async with session.post(f"{url}/generate", json=body) as answer:
            text = await answer.read()
            return answer.headers["x-request-id"] if text.endswith(b"data: [DONE]\n\n") else None
    except aiohttp.ClientError:
        return None


async def load(url: str, key: str, chain: Chain) -> list[str]:
    """Many streams, and a kill when a quarter of them are done; gives the requests that their callers have whole."""
    dice = random.Random(7)
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = [asyncio.create_task(one_stream(session, url, dice)) for _ in range(80)]
        await until(lambda: sum(task.done() for task in asking) >= 20, timeout_s=60)
        await chain.kill("under load", 1)
        return [name for name in await asyncio.gather(*asking) if name is not None]


async def test_a_kill_under_load_loses_no_finished_request_and_bills_none_twice(
    state_dir: Path, store_url: str | None
) -> None:
    keys = await asyncio.to_thread(make_keys, state_dir, store_url)
    async with chain_of(["under load"], state_dir, store_url) as (chain, engine):
        complete = await load(await chain.url(), keys["after admit"], chain)
    rows = await asyncio.to_thread(sound_rows, state_dir, store_url)
    by_id = {row.request_id: row for row in rows}
    assert len(by_id) == len(rows)
    assert 0 < len(complete) < 80
    assert all(by_id[name].accuracy == "exact" and by_id[name].status == "finished" for name in complete)
    cut = [row for row in rows if row.status == "failed"]
    assert cut
    assert {row.accuracy for row in cut} == {"estimated"}
    assert sum(row.prompt_tokens for row in rows) <= engine.truth.prompt
    assert sum(row.completion_tokens for row in rows) <= engine.truth.completion
