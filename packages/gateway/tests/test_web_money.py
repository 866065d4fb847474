"""Limits, balances and prices in the pages."""

import asyncio
import re

import pytest

from deepseek_gateway.limits.rules import Kind
from deepseek_gateway.money.prices import PriceEntry
from deepseek_gateway.storage.rules import LimitEvent
from deepseek_gateway.testing.stack import Stack
from deepseek_gateway.testing.visitor import Visitor
from deepseek_gateway.web.views.balances import prices_at


async def test_a_limit_is_made_found_kept_and_removed(stack: Stack, visitor: Visitor) -> None:
    org_id = await asyncio.to_thread(stack.running.org, "Acme")
    caller = stack.with_key(org_id=org_id)
    form = {"kind": "requests_per_minute", "limit": "1", "org": "Acme", "model": "fake-*"}
    assert (await visitor.submit("/ui/limits/new", **form)).headers["location"] == "/ui/limits?done=limit_created"
    soft = {"kind": "tokens_per_day", "limit": "1,000,000", "team": "*", "soft": "yes", "time_zone": "Asia/Shanghai"}
    assert (await visitor.submit("/ui/limits/new", **soft)).status == 303
    rules = await asyncio.to_thread(stack.gateway.store.rules.all)
    assert [(rule.kind, rule.limit, rule.soft) for rule in rules] == [
        (Kind.REQUESTS_PER_MINUTE, 1, False),
        (Kind.TOKENS_PER_DAY, 1_000_000, True),
    ]
    async with asyncio.timeout(30):
        while (await caller.post()).status != 429:
            pass
    page = (await visitor.get("/ui/limits")).body.decode()
    assert page.index(rules[1].id) < page.index(rules[0].id)  # the newest first
    assert "Asia/Shanghai" in page
    for wanted in ("Acme", org_id):
        page = (await visitor.get(f"/ui/limits?subject=org&value={wanted}")).body.decode()
        assert (rules[0].id in page, rules[1].id in page) == (True, False)
    assert b"No limit names this" in (await visitor.get("/ui/limits?subject=key&value=other")).body
    path = f"/ui/limits/{rules[0].id}/remove"
    assert (await visitor.submit(path, page="/ui/limits")).status == 303
    assert (await visitor.submit(path, page="/ui/limits")).status == 404
    acts = (await visitor.get("/ui/audit?action=limit.*")).body.decode()
    assert "limit.delete" in acts


@pytest.mark.parametrize(
    ("fields", "faulty"),
    [
        ({"limit": "many"}, "limit"),
        ({"limit": "0"}, "limit"),
        ({"kind": "money_per_day", "limit": "1.0000000001"}, "limit"),
        ({"kind": "nothing"}, "kind"),
        ({"kind": "tokens_per_day", "time_zone": "Mars/Base"}, "time_zone"),
        ({"kind": "tokens_per_day", "on_failure": "share"}, "on_failure"),
        ({"org": "nobody"}, "org"),
        ({"team": "nobody"}, "team"),
        ({"key": "no key!"}, "key"),
        ({"key": "abcdefghijkl"}, "key"),  # well-formed, and of nobody
        ({"key": "KEY", "org": "Acme"}, "key"),  # a key of no organisation
        ({"model": "a*b"}, "model"),
        ({"kind": "money_per_day", "limit": "12,5"}, "limit"),  # twelve and a half, in half of the world
        ({"limit": "1,5"}, "limit"),
        ({"limit": "10,00,000"}, "limit"),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
async def test_a_limits_fault_stands_beside_its_field_in_the_pages_language(
    stack: Stack, visitor: Visitor, fields: dict[str, str], faulty: str, language: str
) -> None:
    await asyncio.to_thread(stack.running.org, "Acme")
    fields = {name: value.replace("KEY", stack.caller.key_id) for name, value in fields.items()}
    await visitor.submit("/ui/preferences", page="/ui/account", language=language)
    reply = await visitor.submit("/ui/limits/new", **{"kind": "requests_per_minute", "limit": "7", **fields})
    found = re.findall(r'class="fault" id="(\w+)-fault">([^<]+)<', reply.body.decode())
    assert reply.status == 422
    assert [name for name, _ in found] == [faulty]
    assert found[0][1].isascii() == (language == "en"), found


async def test_what_soft_limits_said_is_listed(stack: Stack, visitor: Visitor) -> None:
    key_id = stack.caller.key_id
    names = {"org_id": None, "team_id": None, "user_id": None, "key_id": key_id, "model": "fake-model"}
    about = {"kind": "money_per_day", "amount": 2_500_000_000, "taken": 3_000_000_000, "created": 5.0, "since": 0.0}
    event = LimitEvent(rule_id="lim_1", counter="c", request_id="req-9", **names, **about)
    await asyncio.to_thread(stack.gateway.store.rules.insert_events, [event])
    page = (await visitor.get("/ui/limits")).body.decode()
    for told in ("Money a day", "$2.50", "$3.00", "req-9", "fake-model", "test"):
        assert told in page, told


async def test_a_balance_is_topped_up_and_remembers_it(stack: Stack, visitor: Visitor) -> None:
    org_id = await asyncio.to_thread(stack.running.org, "Acme")
    reply = await visitor.submit("/ui/balances", org="Acme", amount="1,012.50", kind="top_up", note="invoice <7>")
    assert reply.headers["location"] == f"/ui/balances/org:{org_id}?done=topped_up"
    assert (await visitor.submit("/ui/balances", org="Acme", amount="-2000", kind="grant")).status == 409
    await visitor.submit("/ui/balances", org="Acme", amount="5", kind="grant")
    page = (await visitor.get(f"/ui/balances/org:{org_id}")).body.decode()
    for told in ("Acme", "$1,017.50", "$1,012.50", "$5.00", "invoice &lt;7&gt;"):
        assert told in page, told
    assert "Acme" in (await visitor.get("/ui/balances")).body.decode()
    assert (await visitor.get("/ui/balances/org:nobody")).status == 404


@pytest.mark.parametrize(
    ("fields", "faulty"),
    [
        ({}, "org"),
        ({"org": "nobody"}, "org"),
        ({"key": "nobody"}, "key"),
        ({"key": "KEY", "amount": "0"}, "amount"),
        ({"key": "KEY", "amount": "much"}, "amount"),
        ({"key": "KEY", "amount": "-5"}, "amount"),
        ({"key": "KEY", "amount": "12,50"}, "amount"),
        ({"key": "KEY", "kind": "theft"}, "kind"),
        ({"key": "KEY", "note": "x" * 201}, "note"),
    ],
)
async def test_a_top_ups_fault_stands_beside_its_field(
    stack: Stack, visitor: Visitor, fields: dict[str, str], faulty: str
) -> None:
    await visitor.submit("/ui/preferences", page="/ui/account", language="zh")
    form = {"amount": "5", "kind": "top_up", **fields}
    if form.get("key") == "KEY":
        form["key"] = stack.caller.key_id
    reply = await visitor.submit("/ui/balances", **form)
    found = re.findall(r'class="fault" id="(\w+)-fault">([^<]+)<', reply.body.decode())
    assert reply.status >= 400
    assert [(name, text.isascii()) for name, text in found] == [(faulty, False)]


def test_of_a_models_prices_the_newest_that_has_begun_holds() -> None:
    def entry(model: str, since: str) -> PriceEntry:
        costs = {"input_cache_hit": 1, "input_cache_miss": 2, "output": 3}
        return PriceEntry.model_validate({"model": model, "since": since, **costs})

    entries = [entry("a", "2026-01-01"), entry("a", "2026-03-01"), entry("a", "2099-01-01"), entry("b", "2099-01-01")]
    shown = prices_at(entries, entries[1].since_s)
    assert [(one.entry.model, one.state) for one in shown] == [
        *(("a", "later"), ("a", "now"), ("a", "past")),
        ("b", "later"),
    ]
