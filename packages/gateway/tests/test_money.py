"""Prices, costs on ledger rows, prepaid balances, and budgets in money."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.ledger.records import LedgerRow, TokenCounts
from deepseek_gateway.limits.rules import MAX_LIMIT, Scope
from deepseek_gateway.money.amounts import money_text, parse_money
from deepseek_gateway.money.prices import Price, load_prices
from deepseek_gateway.money.service import TopUpDraft
from deepseek_gateway.storage.balances import BalanceError
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.caller import next_event
from deepseek_gateway.testing.stack import OPERATOR, Stack, running_stack

PRICES = """
currency = "USD"

[[price]]
model = "fake-model"
input_cache_hit = 1000
input_cache_miss = 10000
output = 100000
reasoning = 50000

[[price]]
model = "fake-*"
since = 2026-01-01
input_cache_hit = 1
input_cache_miss = 2
output = 3

[[price]]
model = "fake-*"
since = 2026-06-01
input_cache_hit = 4
input_cache_miss = 5
output = 6
"""
ONE = "currency = 'USD'\n[[price]]\nmodel = 'm'\n"
JANUARY, JULY = 1768000000.0, 1783000000.0


@pytest.fixture
def prices_path(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return path


def test_a_price_is_of_the_name_else_of_the_longest_beginning_and_of_its_day(prices_path: Path) -> None:
    prices = load_prices(prices_path)
    assert prices.find("fake-model", JULY).version == "fake-model@1970-01-01"
    assert prices.find("fake-other", JANUARY).version == "fake-*@2026-01-01"
    assert prices.find("fake-other", JULY).output == 6
    assert prices.find("fake-other", 0.0) is None
    assert prices.find("real", JULY) is None
    assert prices.find(None, JULY) is None


def test_hits_misses_output_and_reasoning_cost_their_own(prices_path: Path) -> None:
    price = load_prices(prices_path).find("fake-model", JULY)
    assert price.cost_nano(TokenCounts(10, 7, 4, 2)) == 4 * 1000 + 6 * 10000 + 5 * 100000 + 2 * 50000
    absurd = TokenCounts(2**39, 2**39, 2**40, 2**40)
    assert 0 <= price.cost_nano(absurd) <= MAX_LIMIT


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_cost_is_never_negative_nor_more_than_its_estimate(
    prompt: int, completion: int, cached: int, thought: int
) -> None:

    price = Price("p", 0.0, 3, 7, 11, 13)
    cost = price.cost_nano(TokenCounts(prompt, completion, cached, thought))
    assert 0 <= cost <= price.estimate_nano(prompt, completion) <= MAX_LIMIT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("currency = 'usd'", "currency"),
        (
            "currency = 'USD'\n[[price]]\nmodel = 'm'\ninput_cache_hit = -1\ninput_cache_miss = 1\noutput = 1",
            r"price\[0\].input",
        ),
        (
            "currency = 'USD'\n[[price]]\nmodel = 'm'\ninput_cache_hit = 1.5\ninput_cache_miss = 1\noutput = 1",
            "integer",
        ),
        ("currency = 'USD'\n[[price]]\nmodel = 'm'\ninput = 1", "input"),
        ("currency = ", "prices.toml"),
    ],
)
def test_a_faulty_file_is_refused_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_prices(path)


@given(st.integers(-(10**18), 10**18))
def test_money_as_text_and_back_is_the_same(nano: int) -> None:
    assert parse_money(money_text(nano)) == nano


@pytest.mark.parametrize("text", ["", "1,5", "1.0000000001", "1e3", "NaN", "--1", "٣"])
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount"):
        parse_money(text)


def row(name: str, cost: int, **more: object) -> LedgerRow:
    base = LedgerRow(
        request_id=name, attempt=1, key_id="k", route="/v1/generate", model="m", upstream="u", stream=True,
        status="finished", end_reason="stop", http_status=200, prompt_tokens=1, completion_tokens=1,
        cached_tokens=0, accuracy="exact", latency_ms=1.5, ttft_ms=None, created=JULY, org_id="acme",
        cost_nano=cost, price_version="m@1",
    )  # fmt: skip
    return replace(base, **more)


def test_balances_change_with_the_rows_and_only_once(store: Store) -> None:
    store.balances.add("org:acme", "USD", 1000)
    store.balances.add("org:acme", "USD", 500, "grant")
    store.balances.add("key:k", "USD", 70)
    rows = [row(f"r{number}", 5) for number in range(120)] + [row("free", 0), row("own", 9, org_id=None)]
    store.ledger.insert(rows)
    store.ledger.insert([*rows, row("new", 1)])
    balance = store.balances.find("org:acme")
    assert (balance.total_nano, balance.spent_nano, balance.granted_left_nano) == (1500 - 601, 601, 0)
    assert store.balances.find("key:k").spent_nano == 9
    assert store.balances.find("key:other") is None
    assert sum(each.cost_nano for each in store.ledger.rows()) == 610


def test_a_batch_that_fails_charges_nothing(store: Store) -> None:
    store.balances.add("org:acme", "USD", 1000)
    with pytest.raises(Exception, match="refuses"):
        store.ledger.insert([row("good", 5), row("bad", 5, prompt_tokens=-1)])
    assert store.balances.find("org:acme").spent_nano == 0


def test_an_account_keeps_its_currency_and_its_bounds(store: Store) -> None:
    store.balances.add("org:acme", "USD", 1000)
    for currency, amount in (("CNY", 5), ("USD", MAX_LIMIT), ("USD", -1001)):
        with pytest.raises(BalanceError):
            store.balances.add("org:acme", currency, amount)
    assert store.balances.find("org:acme").credit_nano == 1000
    assert [entry.amount_nano for entry in store.balances.entries("org:acme")] == [1000]


def test_what_the_ledger_says_of_a_budget(store: Store) -> None:
    store.ledger.insert(
        [
            row("a", 5, team_id="red", model="m-1"),
            row("b", 7, user_id="ann", model="m-2"),
            row("c", 9, org_id="other", key_id="j"),
            row("d", 11, created=JANUARY),
        ]
    )
    spent = store.ledger.spent
    assert spent(Scope(org_id="acme"), "money", JULY, JULY + 1) == 12
    assert spent(Scope(org_id="acme"), "tokens", 0, JULY + 1) == 6
    assert spent(Scope(team_id="red"), "money", 0, JULY + 1) == 5
    assert spent(Scope(user_id="ann", model="m-2"), "money", 0, JULY + 1) == 7
    assert spent(Scope(model="m-*"), "money", 0, JULY + 1) == 12
    assert spent(Scope(key_id="j"), "money", 0, JULY) == 0
    assert spent(Scope(), "money", 0, JULY + 1) == 32


async def top_up(stack: Stack, amount: str, **account: str) -> None:
    draft = TopUpDraft(amount=amount, **account)
    await asyncio.to_thread(stack.gateway.balances.top_up, OPERATOR, draft)
    await stack.gateway.rules.refresh()


BODY = {"prompt": "a", "max_tokens": 4, "fake": {"tokens": 4, "prompt_tokens": 2}}
COST = 2 * 10_000 + 4 * 100_000


async def test_a_prepaid_key_pays_and_is_refused_when_it_is_empty(state_dir: Path, prices_path: Path) -> None:
    async with running_stack(state_dir, prices=str(prices_path)) as stack:
        assert (await stack.caller.get("/user/balance")).json == {"is_available": True, "balance_infos": []}
        await top_up(stack, money_text(COST + 30_000 * 2 + 1), key_id=stack.caller.key_id)
        first = await stack.caller.post(body=BODY)
        assert first.status == 200
        refused = await stack.caller.post(body=BODY)
        assert (refused.status, refused.error["code"]) == (402, "insufficient_balance")
        assert refused.error["message"].startswith("Insufficient Balance: 0.000060001 is left")
        (paid,) = await stack.running.rows(1)
        assert (paid.cost_nano, paid.price_version) == (COST, "fake-model@1970-01-01")
        info = {"currency": "USD", "total_balance": "0.000060001", "granted_balance": "0.00"}
        assert (await stack.caller.get("/user/balance")).json == {
            "is_available": True, "balance_infos": [{**info, "topped_up_balance": "0.000060001"}],
        }  # fmt: skip
        await top_up(stack, "1", key_id=stack.caller.key_id)
        assert (await stack.caller.post(body=BODY)).status == 200


async def test_streams_of_an_organisation_share_its_balance_and_end_before_it_is_negative(
    state_dir: Path, prices_path: Path
) -> None:
    async with running_stack(state_dir, prices=str(prices_path), slice_tokens=32, overrun_tokens=8) as stack:
        org = stack.running.org("acme")
        callers = [stack.with_key(org_id=org) for _ in range(3)]
        await top_up(stack, money_text(300 * 100_000), org_id=org)
        body = {"prompt": "a", "stream": True, "fake": {"tokens": 400, "delay_s": 0.002, "prompt_tokens": 1}}
        replies = await asyncio.gather(*(caller.post(body=body) for caller in callers))
        assert all('"code":"insufficient_balance"' in reply.events[-1] for reply in replies)
        await stack.row()
        balance = stack.gateway.store.balances.find(f"org:{org}")
        cost = sum(each.cost_nano for each in await stack.running.rows(3))
        assert balance.spent_nano == cost
        assert 250 * 100_000 <= cost <= 300 * 100_000
        refused = (await callers[0].get("/user/balance")).json
        assert refused["balance_infos"][0]["total_balance"] == money_text(balance.total_nano)


@pytest.mark.parametrize("script", [{"tokens": 4}, {"tokens": 4000, "delay_s": 0.001}, {"tokens": 4, "cut_after": 2}])
@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_sees_the_end_of_an_answer_finds_it_paid(
    state_dir: Path, prices_path: Path, stream: bool, script: dict
) -> None:
    async with running_stack(state_dir, prices=str(prices_path), slice_tokens=32) as stack:
        await top_up(stack, money_text(200 * 100_000), key_id=stack.caller.key_id)
        body = {"prompt": "a", "stream": stream, "fake": {"prompt_tokens": 2, **script}}
        async with stack.caller.open("/v1/generate", body) as answer:
            if answer.status == 200 and stream:  # SDKs leave at the event that ends an answer
                while (event := await next_event(answer)) != "data: [DONE]" and not event.startswith("event: error"):
                    pass
        (info,) = (await stack.caller.get("/user/balance")).json["balance_infos"]
        (paid,) = await stack.running.rows(1)
        assert info["total_balance"] == money_text(200 * 100_000 - paid.cost_nano)


async def test_a_budget_in_money_needs_a_price(state_dir: Path, prices_path: Path) -> None:
    async with running_stack(state_dir) as stack:
        await top_up(stack, "1", key_id=stack.caller.key_id)
        refused = await stack.caller.post(body=BODY)
        assert (refused.status, refused.error["code"]) == (403, "model_not_priced")
        misspelt = await stack.caller.post(body={**BODY, "model": "fake-modle"})
        assert (misspelt.status, misspelt.error["code"]) == (404, "model_not_found")
        assert "no engine lists 'fake-modle'; there are: fake-model" in misspelt.error["message"]


async def test_reasoning_and_cached_tokens_are_on_the_row(state_dir: Path, prices_path: Path) -> None:
    async with running_stack(state_dir, prices=str(prices_path)) as stack:
        body = {**BODY, "fake": {"tokens": 4, "prompt_tokens": 9, "cached_tokens": 5}}
        assert (await stack.caller.post(body=body)).status == 200
        done = await stack.row()
        assert (done.cached_tokens, done.reasoning_tokens) == (5, 0)
        assert done.cost_nano == 5 * 1000 + 4 * 10_000 + 4 * 100_000
