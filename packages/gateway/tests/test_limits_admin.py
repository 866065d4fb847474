"""Limits as administrators set them: commands, the admin API, and what gateways make of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deepseek_gateway.errors import ApiError
from deepseek_gateway.limits.drafts import LimitDraft
from deepseek_gateway.storage.rules import LimitEvent
from deepseek_gateway.storage.store import open_store
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.command import Command
from deepseek_gateway.testing.stack import OPERATOR, Stack, running_stack


@pytest.fixture
def admin(stack: Stack):
    return stack.with_key(scopes=["admin"])


async def test_a_rule_is_in_force_without_a_restart_and_gone_when_it_is_removed(stack: Stack, admin) -> None:
    org = stack.running.org("acme")
    one, two = stack.with_key(org_id=org), stack.with_key(org_id=org)
    draft = {"kind": "requests_per_minute", "limit": 2, "org_id": org}
    async with admin.open("/admin/limits", draft) as answer:
        assert answer.status == 201
        rule = await answer.json()
    await until(lambda: stack.gateway.rules._version[0] == 1)  # it looks once a second
    assert [(await caller.post()).status for caller in (one, two)] == [200, 200]
    refused = await one.post()
    assert (refused.status, refused.error["code"]) == (429, "requests_per_minute")
    assert f"(rule {rule['id']}: organisation {org})" in refused.error["message"]
    assert refused.headers["x-ratelimit-rule"] == rule["id"]
    assert (await stack.caller.post()).status == 200
    async with admin.open(f"/admin/limits/{rule['id']}", {**draft, "limit": 100}, method="PUT") as answer:
        assert (await answer.json())["limit"] == 100
    assert [each["limit"] for each in (await admin.get("/admin/limits")).json["data"]] == [100]
    async with admin.open(f"/admin/limits/{rule['id']}", method="DELETE") as answer:
        assert answer.status == 200
    await stack.gateway.rules.refresh()
    assert [(await one.post()).status for _ in range(3)] == [200] * 3


async def test_a_soft_limit_tells_once_in_log_metric_and_store(stack: Stack, admin, caplog) -> None:
    draft = LimitDraft(kind="tokens_per_day", limit=3, key_id="*", soft=True)
    rule = await asyncio.to_thread(stack.gateway.limits.set, OPERATOR, draft)
    await stack.gateway.rules.refresh()
    for _ in range(4):
        assert (await stack.caller.post()).status == 200
    await stack.gateway.alerts.flush()
    (event,) = (await admin.get("/admin/limit-events")).json["data"]
    assert (event["rule_id"], event["key_id"], event["kind"]) == (rule.id, stack.caller.key_id, "tokens_per_day")
    assert len([record for record in caplog.records if "soft limit reached" in record.getMessage()]) == 1
    metrics = (await stack.caller.get("/metrics")).body.decode()
    assert 'deepseek_gateway_soft_limits_reached_total{rule="tokens_per_day"} 1.0' in metrics
    assert "deepseek_gateway_limits_kept 1.0" in metrics


@pytest.mark.parametrize(
    ("draft", "param"),
    [
        ({"kind": "tokens_per_minute", "limit": 0}, "limit"),
        ({"kind": "tokens_per_minute", "limit": "many"}, "limit"),
        ({"kind": "money_per_day", "limit": "1.5", "on_failure": "share"}, "on_failure"),
        ({"kind": "tokens_per_day", "limit": 5, "time_zone": "Mars"}, "time_zone"),
        ({"kind": "words_per_day", "limit": 5}, "kind"),
        ({"kind": "tokens_per_day", "limit": 5, "team": "x"}, "team"),
    ],
)
async def test_a_rule_that_cannot_hold_is_refused_by_name(admin, draft: dict, param: str) -> None:
    async with admin.open("/admin/limits", draft) as answer:
        assert answer.status == 422
        assert param in (await answer.json())["error"]["message"]


async def test_a_rule_that_no_request_can_match_is_refused(stack: Stack, admin) -> None:
    service, running = stack.gateway.limits, stack.running
    org, other = running.org("acme"), running.org("other")
    team = (await admin.post("/admin/teams", {"name": "red", "org_id": other})).json["id"]
    key = stack.with_key(org_id=other).key_id
    for subjects, said in (
        ({"org_id": "nobody"}, "org_id='nobody': there is no such organisation"),
        ({"key_id": "nobody"}, "there is no such key"),
        ({"user_id": "nobody"}, "there is no such user"),
        ({"org_id": org, "team_id": team}, "no request would match"),
        ({"org_id": org, "key_id": key}, "no request would match"),
        ({"org_id": org, "key_id": stack.caller.key_id}, "no request would match"),
    ):
        with pytest.raises(ApiError, match=said):
            await asyncio.to_thread(service.set, OPERATOR, LimitDraft(kind="tokens_per_day", limit=5, **subjects))
    for subjects in ({"org_id": other, "team_id": team, "key_id": key}, {"org_id": "*", "team_id": team}):
        await asyncio.to_thread(service.set, OPERATOR, LimitDraft(kind="tokens_per_day", limit=5, **subjects))


async def test_who_administers_one_organisation_sees_its_limits_and_changes_none(stack: Stack) -> None:
    org, other = stack.running.org("acme"), stack.running.org("other")
    for name in (org, other):
        draft = LimitDraft(kind="tokens_per_day", limit=5, org_id=name)
        await asyncio.to_thread(stack.gateway.limits.set, OPERATOR, draft)
    bound = stack.with_key(scopes=["admin"], org_id=org)
    (seen,) = (await bound.get("/admin/limits")).json["data"]
    assert seen["org_id"] == org
    async with bound.open(f"/admin/limits/{seen['id']}", method="DELETE") as answer:
        assert answer.status == 403


def test_commands_set_list_and_remove_limits_and_top_up_balances(tmp_path: Path, command: Command) -> None:
    state, prices = tmp_path / "state", tmp_path / "prices.toml"
    prices.write_text('currency = "CNY"\n')
    assert command("migrate", "--state", state)[0] == 0
    (state / "gateway.toml").write_text(f'prices = "{prices}"\n')
    org = command.json("org", "create", "acme", "--state", state)["id"]
    there = ("--state", state)
    rule = command.json(
        "limit", "set", "money-per-month", "12.50", "--org", "acme", "--time-zone", "Asia/Shanghai", *there
    )
    assert (rule["kind"], rule["limit"], rule["org_id"], rule["on_failure"]) == (
        "money_per_month",
        "12.50",
        org,
        "deny",
    )
    changed = command.json("limit", "set", "money-per-month", "20", "--org", "acme", "--id", rule["id"], *there)
    assert [each["limit"] for each in command.json("limit", "list", *there)] == [changed["limit"]] == ["20.00"]
    shown = command("limit", "list", *there)[1]
    assert f"org={org}" in shown
    assert command("limit", "remove", rule["id"], *there)[0] == 0
    assert command.json("limit", "list", *there) == []
    assert "no limit has the id" in command("limit", "remove", rule["id"], *there)[2]
    assert "limit" in command("limit", "set", "tokens-per-day", "x", *there)[2]
    refused = command("limit", "set", "money-per-month", "-1", "--org", "acme", *there)[2]
    assert "limit=-1.00: money_per_month takes an amount of money from 0.000000001 to 9007199.254740991" in refused
    event = {"rule_id": "r", "counter": "c", "since": 0.0, "created": 0.0, "request_id": "req-1"}
    event |= dict.fromkeys(("org_id", "team_id", "user_id", "key_id", "model"))
    store = open_store(state / "gateway.sqlite3", None)
    store.rules.insert_events([LimitEvent(kind="money_per_day", amount=1_500_000_000, taken=2 * 10**9, **event)])
    store.close()
    assert "money_per_day  1.50    2.00" in command("limit", "events", *there)[1]
    (seen,) = command.json("limit", "events", *there)
    assert (seen["amount"], seen["taken"]) == ("1.50", "2.00")
    topped = command.json("balance", "top-up", "5", "--org", "acme", "--note", "first", *there)
    assert (topped["account"], topped["total"], topped["currency"]) == (f"org:{org}", "5.00", "CNY")
    assert command.json("balance", "top-up", "1.25", "--org", "acme", "--grant", *there)["total"] == "6.25"
    assert command("balance", "top-up", "-99", "--org", "acme", *there)[2].startswith(
        f"deepseek-gateway: org:{org} would have -92.75 CNY in all"
    )
    assert command("balance", "top-up", "0", "--org", "acme", *there)[2].startswith(
        "deepseek-gateway: amount='0': it changes nothing"
    )
    (account,) = command.json("balance", "show", *there)
    assert (account["topped_up"], account["granted"], account["spent"]) == ("5.00", "1.25", "0.00")


def test_check_reads_the_prices_and_asks_redis(tmp_path: Path, redis_url: str, command: Command) -> None:
    state, prices = tmp_path / "state", tmp_path / "prices.toml"
    prices.write_text('currency = "CNY"\nprices = 1\n')
    assert command("migrate", "--state", state)[0] == 0
    (state / "gateway.toml").write_text(f'prices = "{prices}"\nredis_url = "unix:///nowhere.sock"\n')
    assert f"fault: {prices}: prices" in command("check", "--state", state)[1]
    prices.write_text('currency = "CNY"\n')
    assert "fault: GATEWAY_REDIS_URL: the server does not answer" in command("check", "--state", state)[1]
    (state / "gateway.toml").write_text(f'redis_url = "{redis_url}"\nredis_timeout_s = 5.0\n')
    assert "REDIS" not in command("check", "--state", state)[1].partition("\n\nfault")[2]


@pytest.mark.parametrize("is_shared", [False, True], ids=["local", "redis"])
async def test_a_rule_that_is_changed_to_count_something_else_begins_anew(
    state_dir: Path, redis_url: str, is_shared: bool
) -> None:
    async with running_stack(state_dir, **({"redis_url": redis_url} if is_shared else {})) as stack:
        key, other = stack.caller.key_id, stack.with_key()

        async def set_rule(rule_id: str | None, **fields: Any) -> str:
            rule = await asyncio.to_thread(stack.gateway.limits.set, OPERATOR, LimitDraft(**fields), rule_id)
            await stack.gateway.rules.refresh()
            return rule.id

        rule_id = await set_rule(None, kind="requests_per_minute", limit=3, key_id=key)
        assert (await stack.caller.post()).status == 200
        for kind, limit in (
            ("tokens_per_minute", 10_000),
            ("concurrent_requests", 2),
            ("tokens_per_day", 10_000),
            ("tokens_per_month", 10_000),
            ("requests_per_minute", 100),
        ):
            await set_rule(rule_id, kind=kind, limit=limit, key_id=key)
            assert [(await stack.caller.post()).status for _ in range(4)] == [200] * 4, kind
        await set_rule(rule_id, kind="tokens_per_day", limit=40, key_id=key)  # what it has used counts
        assert (await stack.caller.post()).status == 402
        await set_rule(rule_id, kind="tokens_per_day", limit=40, key_id=other.key_id)
        assert [(await caller.post()).status for caller in (other, stack.caller)] == [200, 200]
        assert stack.gateway.limiter.trouble is None
