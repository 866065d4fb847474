"""Limits that several gateways share, on a real Redis that is paused, killed and emptied; its clock is the test's."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import redis
from redis.crc import key_slot

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.limiter import Crossing
from deepseek_gateway.limits.redis_limiter import RedisLimiter
from deepseek_gateway.limits.redis_link import (
    FAILURES_TO_OPEN,
    WARM_CONNECTIONS,
    RedisLink,
    RedisUnavailableError,
    load_scripts,
)
from deepseek_gateway.limits.redis_node import RedisTimes
from deepseek_gateway.limits.rulebook import Meter, Plan, Rulebook
from deepseek_gateway.limits.rules import (
    Amounts,
    Ask,
    Kind,
    LimitReached,
    LimitRule,
    Limits,
    LimitsUnavailable,
    Subject,
)
from deepseek_gateway.limits.windows import Window
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.redis_clock import ClockedLink
from deepseek_gateway.testing.redis_server import RedisServer

START = time.time() // 86400 * 86400
TIMES = RedisTimes(beat_s=0.5, lease_s=15.0, settling_s=0.0)


class House:
    """One Redis, one ledger, and gateways that come and go."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        self.server = server
        self.stack = stack
        self.link = ClockedLink(server, START)
        self.spent = 0
        self.loads = 0
        self.times = TIMES

    async def gateway(self, timeout_s: float = 5.0) -> RedisLimiter:
        link = ClockedLink(self.server, START, timeout_s)
        limiter = RedisLimiter(link, self.ledger, self.flush, self.link.clocks, self.times)
        await limiter._node.beat()
        self.stack.push_async_callback(limiter.close)
        return limiter

    async def ledger(self, meter: Meter, window: Window) -> int:
        self.loads += 1
        return self.spent

    async def flush(self) -> None:
        pass

    def lose(self) -> None:
        self.server.flush()
        self.link.advance(0.0)

    def keys(self, pattern: str) -> list[str]:
        with redis.from_url(self.server.url, decode_responses=True) as client:
            return list(client.scan_iter(pattern))


@pytest.fixture
async def house(shared_redis: RedisServer) -> AsyncIterator[House]:
    shared_redis.flush()
    async with AsyncExitStack() as stack:
        yield House(shared_redis, stack)


def plan_of(*rules: LimitRule, credits: int | None = None, **limits: int) -> Plan:  # noqa: A002
    book = Rulebook(rules, {"org:acme": credits} if credits is not None else None)
    return book.plan(Subject("k", "acme", model="m"), Limits(**limits))


def ask(tokens: int, least: int | None = None) -> Ask:
    return Ask(0, tokens, Amounts(tokens, tokens), Amounts(tokens if least is None else least, least or tokens))


async def fill(limiter: RedisLimiter, plan: Plan, amount: int = 1, name: str = "q") -> int:
    """Admit until it is refused; gives how many came in."""
    for number in range(1000):
        try:
            await limiter.admit(f"{name}{number}", plan, ask(amount))
        except LimitReached:
            return number
    raise AssertionError("no limit")


@pytest.mark.parametrize("kind", list(Kind))
async def test_several_gateways_together_stay_within_a_limit(house: House, kind: Kind) -> None:
    plan = plan_of(credits=20) if kind is Kind.BALANCE else plan_of(LimitRule("r", kind, 20, org_id="acme"))
    gateways = [await house.gateway() for _ in range(3)]
    admitted = await asyncio.gather(*(fill(each, plan, name=f"g{at}-") for at, each in enumerate(gateways)))
    assert sum(admitted) == 20
    assert house.loads <= (3 if kind.period is not None else 0)


async def test_what_is_settled_can_be_had_by_the_other_gateway(house: House) -> None:
    one, two = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_month=100, concurrent_requests=1)
    held = await one.admit("a", plan, ask(90))
    with pytest.raises(LimitReached):
        await two.admit("b", plan, ask(5))
    one.settle(held, Amounts(10))
    await one.settled(held)
    await two.admit("b", plan, ask(90))
    assert not house.keys("*:r:a")


async def test_a_settlement_tells_what_is_left_and_which_soft_limits_are_over(house: House) -> None:
    soft = LimitRule("soft", Kind.TOKENS_PER_DAY, 10, org_id="acme", soft=True)
    plan, limiter = plan_of(soft, tokens_per_minute=100), await house.gateway()
    told: list[Crossing] = []
    limiter._crossed = lambda reservation: told.extend(reservation.crossed)
    for used, crossings in ((8, []), (3, [(soft, 11)])):
        reservation = await limiter.admit(f"q{used}", plan, ask(50))
        assert reservation.crossed == []  # what is held is mostly given back
        limiter.settle(reservation, Amounts(used))
        await limiter.settled(reservation)
        assert [(each.meter.rule, each.taken) for each in told] == crossings
    assert [standing.remaining for standing in limiter.standings(reservation)] == [89]


async def test_a_budget_is_read_from_the_ledger_once_a_window(house: House) -> None:
    house.spent = 60
    one, two = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_month=100)
    await one.admit("a", plan, ask(30))
    with pytest.raises(LimitReached, match="10 of tokens_per_month=100 are left"):
        await two.admit("b", plan, ask(30))
    assert house.loads == 1


async def test_a_ledger_that_cannot_be_read_lets_no_budget_pass(house: House) -> None:
    async def broken(meter: Meter, window: Window) -> int:
        raise OSError("the store is away")

    house.ledger = broken  # type: ignore[method-assign]
    with pytest.raises(LimitsUnavailable) as refusal:
        await (await house.gateway()).admit("a", plan_of(tokens_per_month=100), ask(1))
    assert refusal.value.rule is not None
    assert refusal.value.rule.kind is Kind.TOKENS_PER_MONTH


async def test_after_flushall_budgets_are_rebuilt_with_all_that_runs_before_they_admit(house: House) -> None:
    one, two = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_month=100, concurrent_requests=3)
    running = await one.admit("a", plan, ask(40))
    done = await two.admit("b", plan, ask(40))
    two.settle(done, Amounts(25))
    await two.settled(done)
    house.spent = 25  # the ledger has the settled one
    house.lose()
    await one._node.beat()  # every gateway beats within the settling time
    with pytest.raises(LimitReached, match="35 of"):
        await two.admit("c", plan, ask(36))
    await two.admit("c", plan, ask(35))
    one.settle(running, Amounts(30))
    await one.settled(running)
    await two.admit("d", plan, ask(10))
    with pytest.raises(LimitReached):
        await two.admit("e", plan, ask(1))


async def test_a_new_memory_admits_no_budget_until_all_gateways_had_time_to_put_back(house: House) -> None:
    house.times = replace(TIMES, settling_s=2.0)
    limiter = await house.gateway()
    house.link.advance(2.0)
    plan = plan_of(tokens_per_month=100)
    await limiter.admit("a", plan, ask(1))
    house.lose()
    waiting = asyncio.create_task(limiter.admit("b", plan, ask(1)))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    house.link.advance(2.0)
    await waiting


async def test_a_lost_memory_gives_rates_back_at_their_pace(house: House) -> None:
    limiter = await house.gateway()
    plan = plan_of(requests_per_minute=60, tokens_per_minute=600)
    assert await fill(limiter, plan) == 60
    house.lose()
    assert await fill(limiter, plan, name="x") == 0
    house.link.advance(5.0)
    assert await fill(limiter, plan, name="y") == 5


async def test_a_dead_gateways_holds_end_with_their_lease_at_the_most_they_can_be(house: House) -> None:
    dead, alive = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_month=100, concurrent_requests=1)
    await dead.admit("orphan", plan, ask(60))
    house.link.advance(14.0)
    with pytest.raises(LimitReached):
        await alive.admit("a", plan, ask(10))
    house.link.advance(2.0)
    with pytest.raises(LimitReached, match="40 of"):
        await alive.admit("a", plan, ask(50))
    held = await alive.admit("a", plan, ask(40))
    assert not house.keys("*:r:orphan")
    alive.settle(held, Amounts(0))
    await alive.settled(held)
    # It comes back and reads in its journal that the orphan used 5.
    again = await house.gateway()
    again.settle_recovered([row("orphan", 5)])
    await again._node.deliver_all()
    await alive.admit("b", plan, ask(95))
    assert not house.keys("*:o:*")


async def test_a_gateway_that_comes_back_within_the_lease_settles_what_it_held(house: House) -> None:
    dead, alive = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_minute=100, tokens_per_month=100, concurrent_requests=1)
    await dead.admit("orphan", plan, ask(60))
    again = await house.gateway()
    again.settle_recovered([row("orphan", 5), row("nobody", 7)])
    await again._node.deliver_all()
    await alive.admit("a", plan, ask(95))
    assert again.num_settling == 0


async def test_leases_of_running_requests_are_renewed(house: House) -> None:
    limiter, other = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_month=100, concurrent_requests=1)
    held = await limiter.admit("a", plan, ask(60))
    for _ in range(10):
        house.link.advance(6.0)
        await limiter._node.renew()
        with pytest.raises(LimitReached):
            await other.admit("b", plan, ask(1))
    assert (await limiter.extend(held, Amounts(10))).tokens == 10


async def test_a_lease_that_ran_out_under_a_running_stream_is_put_back(house: House) -> None:
    limiter, other = await house.gateway(), await house.gateway()
    plan = plan_of(tokens_per_month=100)
    held = await limiter.admit("a", plan, ask(60))
    house.link.advance(20.0)
    await other.admit("b", plan, ask(10))  # sweeps
    assert (await limiter.extend(held, Amounts(50))).tokens == 30
    limiter.settle(held, Amounts(60))
    await limiter.settled(held)
    with pytest.raises(LimitReached, match="30 of"):
        await other.admit("c", plan, ask(31))


async def test_a_step_that_comes_too_late_is_not_done(house: House) -> None:
    limiter = await house.gateway()
    limiter._node._offset_us -= 60e6  # it believes in a clock that is a minute behind
    await limiter.admit("a", plan_of(requests_per_minute=5), ask(1))  # and learns better
    late = await limiter.link.run(
        "admit", ["dsg:{acme}:epoch", "dsg:{acme}:leases", "dsg:{acme}:r:x"], ["", 0, "x", 1, 5]
    )
    assert late == ["late"]


async def test_no_step_swallows_a_cancellation_whenever_it_comes(redis_url: str) -> None:
    link = RedisLink(redis_url, 5.0)
    keys, arguments = ["dsg:{gateways}:epoch", "dsg:{gateways}:nodes"], ["node", "epoch", 0, 0]
    await link.run("beat", keys, arguments)  # connects
    try:
        for turns in range(40):
            step = asyncio.create_task(link.run("beat", keys, arguments))
            for _ in range(turns):
                await asyncio.sleep(0)
            if step.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await step
    finally:
        await link.close()


def broken_house(server: RedisServer) -> RedisLimiter:
    async def no_ledger(meter: Meter, window: Window) -> int:
        return 0

    async def flush() -> None:
        pass

    return RedisLimiter(RedisLink(server.url, 0.5), no_ledger, flush, times=RedisTimes(0.02, 15.0, 0.0))


@pytest.mark.parametrize("how", ["pause", "kill"])
async def test_while_redis_is_away_budgets_refuse_and_rates_are_shared(redis_server: RedisServer, how: str) -> None:
    limiter, other = broken_house(redis_server), broken_house(redis_server)
    await limiter.start()
    await other.start()
    rate, budget = plan_of(concurrent_requests=10), plan_of(concurrent_requests=10, tokens_per_month=100)
    held = await limiter.admit("a", rate, ask(1))
    await limiter.admit("m", budget, ask(1))
    await until(lambda: limiter._node.num_nodes == 2)
    redis_server.pause() if how == "pause" else redis_server.kill()
    with pytest.raises(LimitsUnavailable) as refusal:
        await limiter.admit("b", budget, ask(1))
    assert refusal.value.rule.kind is Kind.TOKENS_PER_MONTH
    # Half of ten places are this gateway's, and two of its requests run.
    assert await fill(limiter, rate, name="s") == 3
    assert await fill(other, rate, name="t") == 5
    assert "budgets are refused" in (limiter.trouble or "")
    await until(lambda: limiter.link.is_open)
    client, limiter.link._client = limiter.link._client, None  # nobody asks a server that is known to be away
    with pytest.raises(LimitReached):
        await limiter.admit("c", rate, ask(1))
    limiter.link._client = client
    limiter.settle(held, Amounts(1))
    assert await fill(limiter, rate, name="u") == 1
    redis_server.resume() if how == "pause" else redis_server.restart()
    await until(lambda: limiter.trouble is None and limiter.num_settling == 0)
    await limiter.admit("d", budget, ask(1))
    await limiter.close()
    await other.close()


async def test_a_gateway_that_never_met_redis_lets_no_limited_request_in(redis_server: RedisServer) -> None:
    redis_server.kill()
    limiter = broken_house(redis_server)
    await limiter.start()
    with pytest.raises(LimitsUnavailable):
        await limiter.admit("a", plan_of(requests_per_minute=100), ask(1))
    await limiter.admit("b", plan_of(), ask(1))  # without limits there is nothing to keep
    await limiter.close()


async def test_a_stream_goes_on_by_its_share_and_one_with_a_budget_ends(redis_server: RedisServer) -> None:
    limiter = broken_house(redis_server)
    await limiter.start()
    rate = await limiter.admit("a", plan_of(tokens_per_minute=60_000_000), ask(10))
    budget = await limiter.admit("b", plan_of(tokens_per_month=1000), ask(10))
    redis_server.kill()
    assert (await limiter.extend(budget, Amounts(10))).tokens == 0
    assert isinstance(limiter.reached(budget), LimitsUnavailable)
    await limiter.extend(rate, Amounts(10))  # the share's bucket begins empty
    await asyncio.sleep(0.01)
    assert (await limiter.extend(rate, Amounts(10))).tokens == 10
    assert rate.tokens >= 20
    limiter.settle(rate, Amounts(15))
    limiter.settle(budget, Amounts(10))
    redis_server.restart()
    await until(lambda: limiter.num_settling == 0)
    await limiter.close()


async def test_the_breaker_opens_after_five_failures_and_a_probe_closes_it(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url, 0.5)
    redis_server.kill()
    keys, arguments = ["dsg:{g}:epoch", "dsg:{g}:nodes"], ["n", "e", 0, 0]
    for number in range(FAILURES_TO_OPEN):
        assert not link.is_open, number
        with pytest.raises(RedisUnavailableError):
            await link.run("beat", keys, arguments)
    assert link.is_open
    redis_server.restart()
    with pytest.raises(RedisUnavailableError, match="no answer"):
        await link.run("beat", keys, arguments)
    await link.run("beat", keys, arguments, is_probe=True)
    assert not link.is_open
    await link.run("beat", keys, arguments)
    await link.close()


async def test_keys_of_an_organisation_share_a_slot_of_a_cluster(house: House) -> None:
    limiter = await house.gateway()
    plan = plan_of(
        LimitRule("r", Kind.TOKENS_PER_DAY, 5, key_id="*"), requests_per_minute=5, tokens_per_month=9, credits=7
    )
    await limiter.admit("a", plan, ask(1))
    keys = house.keys("dsg:{acme}*")
    slots = {key_slot(key.encode()) for key in keys}
    assert (len(slots), len(keys)) == (1, 7)
    assert not [key for key in house.keys("dsg:*") if not key.startswith(("dsg:{acme}:", "dsg:{gateways}:"))]


def row(name: str, tokens: int) -> LedgerRow:
    return LedgerRow(
        request_id=name, attempt=1, key_id="k", route="/v1/generate", model="m", upstream=None, stream=True,
        status="failed", end_reason="gateway_crash", http_status=499, prompt_tokens=tokens, completion_tokens=0,
        cached_tokens=0, accuracy="estimated", latency_ms=0.0, ttft_ms=None, created=START, org_id="acme",
    )  # fmt: skip


async def test_a_link_is_connected_and_its_scripts_are_known_before_a_request_comes(
    redis_server: RedisServer,
) -> None:
    link = RedisLink(redis_server.url, timeout_s=5.0)
    limiter = RedisLimiter(link, nothing_spent, nothing_to_flush)
    await limiter.start()
    try:
        with redis.Redis.from_url(redis_server.url) as client:
            known = client.script_exists(*(digest for digest, _ in load_scripts().values()))
            connected = int(client.info("clients")["connected_clients"]) - 1
        assert all(known)
        assert connected >= WARM_CONNECTIONS
        assert limiter.trouble is None
    finally:
        await limiter.close()


async def test_a_start_waits_longer_for_redis_than_a_request_does(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url, timeout_s=0.001)
    try:
        assert await link.warm()
    finally:
        await link.close()


async def test_a_start_without_redis_goes_on(redis_server: RedisServer) -> None:
    redis_server.kill()
    link = RedisLink(redis_server.url, timeout_s=5.0)
    assert not await link.warm()
    assert link.failure is not None
    await link.close()


async def nothing_spent(meter: Meter, window: Window) -> int:
    return 0


async def nothing_to_flush() -> None:
    pass
