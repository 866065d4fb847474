"""Limits as arithmetic: a given clock, no sockets."""

from datetime import UTC, datetime

import pytest

from deepseek_gateway.limits.headers import rate_limit_headers
from deepseek_gateway.limits.limiter import Reservation
from deepseek_gateway.limits.local import LocalLimiter
from deepseek_gateway.limits.rulebook import ALL, Meter, Plan, Rulebook
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, LimitReached, LimitRule, Limits, Now, Subject
from deepseek_gateway.limits.windows import Calendar, Window, window_of

NOVEMBER = 1795392000.0  # 2026-11-23T00:00:00Z
DECEMBER = 1796083200.0


class Clock:
    """Both clocks, at a number of seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> Now:
        return Now(1000.0 + self.seconds, NOVEMBER + self.seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> LocalLimiter:
    return LocalLimiter(clocks=clock)


def plan_of(**limits: int) -> Plan:
    return Rulebook().plan(Subject("k"), Limits(**limits))


def ask(prompt: int, completion: int, least: int | None = None, nano: int = 0) -> Ask:
    wanted = Amounts(prompt + completion, nano)
    return Ask(prompt, completion, wanted, Amounts(prompt + (completion if least is None else least), nano))


async def admit(limiter: LocalLimiter, plan: Plan, asked: Ask) -> Reservation:
    return await limiter.admit("r", plan, asked)


async def test_a_rested_key_may_use_a_minutes_requests_at_once_and_then_waits_for_the_pace(limiter, clock) -> None:
    plan = plan_of(requests_per_minute=6)
    for _ in range(6):
        await admit(limiter, plan, ask(1, 1))
    with pytest.raises(LimitReached) as refusal:
        await admit(limiter, plan, ask(1, 1))
    assert refusal.value.rule.kind is Kind.REQUESTS_PER_MINUTE
    assert refusal.value.retry_after_s == pytest.approx(10)
    clock.seconds = 9.9
    with pytest.raises(LimitReached):
        await admit(limiter, plan, ask(1, 1))
    clock.seconds = 10
    await admit(limiter, plan, ask(1, 1))


async def test_tokens_come_back_at_the_rate_and_at_once_when_they_were_not_used(limiter) -> None:
    plan = plan_of(tokens_per_minute=60)
    reservation = await admit(limiter, plan, ask(10, 50))
    with pytest.raises(LimitReached) as refusal:
        await admit(limiter, plan, ask(10, 20))
    assert refusal.value.retry_after_s == pytest.approx(30)
    limiter.settle(reservation, Amounts(20))
    await admit(limiter, plan, ask(10, 30))


async def test_a_stream_begins_with_less_when_less_is_free(limiter) -> None:
    plan = plan_of(tokens_per_minute=60)
    assert (await admit(limiter, plan, ask(10, 40))).tokens == 50
    assert (await admit(limiter, plan, ask(2, 40, least=5))).tokens == 10
    with pytest.raises(LimitReached):
        await admit(limiter, plan, ask(2, 40, least=5))


async def test_a_request_that_never_fits_says_so_instead_of_when_to_retry(limiter) -> None:
    with pytest.raises(LimitReached) as refusal:
        await admit(limiter, plan_of(tokens_per_minute=60), ask(100, 1))
    assert refusal.value.retry_after_s is None
    assert "tokens_per_minute=60" in refusal.value.message


async def test_a_refusal_by_one_rule_charges_no_other(limiter) -> None:
    plan = plan_of(requests_per_minute=10, tokens_per_minute=100, concurrent_requests=1, tokens_per_month=1000)
    first = await admit(limiter, plan, ask(10, 10))
    with pytest.raises(LimitReached) as refusal:
        await admit(limiter, plan, ask(10, 10))
    assert refusal.value.rule.kind is Kind.CONCURRENT_REQUESTS
    assert rate_limit_headers(refusal.value.standings) == rate_limit_headers(first.standings)


async def test_the_rule_that_takes_longest_is_named_so_that_one_wait_is_enough(limiter) -> None:
    plan = plan_of(requests_per_minute=1, tokens_per_minute=100, concurrent_requests=1)
    await admit(limiter, plan, ask(10, 10))
    with pytest.raises(LimitReached) as refusal:
        await admit(limiter, plan, ask(10, 10))
    assert (refusal.value.rule.kind, refusal.value.retry_after_s) == (Kind.REQUESTS_PER_MINUTE, 60)


async def test_the_months_budget_counts_what_is_held_and_begins_again_with_the_month(clock) -> None:
    loads: list[tuple[str, Window]] = []

    async def spent(meter: Meter, window: Window) -> int:
        loads.append((meter.counter, window))
        return 80 if window.start < DECEMBER else 0

    limiter, plan = LocalLimiter(spent, clock), plan_of(tokens_per_month=100)
    running = await admit(limiter, plan, ask(5, 10))
    with pytest.raises(LimitReached) as refusal:
        await admit(limiter, plan, ask(5, 10))
    assert "5 of tokens_per_month=100 are left" in refusal.value.message
    assert refusal.value.message.endswith("2026-12-01T00:00:00Z")
    clock.seconds = DECEMBER - NOVEMBER
    await admit(limiter, plan, ask(5, 90))
    limiter.settle(running, Amounts(15))  # November's tokens do not burden December
    meter = limiter.state("key:k:tokens_per_month")
    assert (meter.used, meter.held) == (0, 95)
    assert len(loads) == 2  # once a window, however many requests there are


async def test_an_extension_gives_what_is_left_and_no_more(limiter) -> None:
    reservation = await admit(limiter, plan_of(tokens_per_month=100), ask(10, 20))
    assert (await limiter.extend(reservation, Amounts(50))).tokens == 50
    assert (await limiter.extend(reservation, Amounts(50))).tokens == 20
    assert (await limiter.extend(reservation, Amounts(50))).tokens == 0
    assert limiter.reached(reservation).rule.kind is Kind.TOKENS_PER_MONTH


async def test_settling_twice_gives_back_once(limiter, clock) -> None:
    reservation = await admit(limiter, plan_of(tokens_per_minute=100, concurrent_requests=5), ask(10, 40))
    limiter.settle(reservation, Amounts(10))
    limiter.settle(reservation, Amounts(0))
    assert limiter.state("key:k:concurrent_requests").running == 0
    assert limiter.state("key:k:tokens_per_minute").room(100, clock()) == pytest.approx(90)


async def test_a_clock_that_goes_back_gives_no_tokens_and_no_new_month(limiter, clock) -> None:
    plan = plan_of(tokens_per_minute=60, tokens_per_month=60)
    clock.seconds = DECEMBER - NOVEMBER
    await admit(limiter, plan, ask(0, 60))
    for seconds in (0, 50, clock.seconds):
        clock.seconds = seconds
        with pytest.raises(LimitReached):
            await admit(limiter, plan, ask(0, 1))


async def test_keys_do_not_share_their_own_limits(limiter) -> None:
    for key in ("one", "two"):
        await admit(limiter, Rulebook().plan(Subject(key), Limits(requests_per_minute=1)), ask(1, 1))


def names(book: Rulebook, subject: Subject, **limits: int) -> set[str]:
    return {named(meter) for meter in book.plan(subject, Limits(**limits)).meters}


def named(meter: Meter) -> str:
    """A counter's name without what it counts."""
    return meter.counter.replace(f"\x1f{meter.rule.counted}", "")


def test_every_rule_that_matches_counts_and_no_other() -> None:
    rpm = Kind.REQUESTS_PER_MINUTE
    book = Rulebook(
        [
            LimitRule("org", rpm, 1, org_id="acme"),
            LimitRule("team", rpm, 1, team_id="red"),
            LimitRule("user", rpm, 1, user_id="ann"),
            LimitRule("key-model", rpm, 1, key_id="k", model="big"),
            LimitRule("model", rpm, 1, model="big"),
            LimitRule("family", rpm, 1, org_id="acme", model="bi*"),
            LimitRule("all", rpm, 1),
            LimitRule("each-user", rpm, 1, org_id="acme", user_id="*"),
            LimitRule("each-model", rpm, 1, model="*"),
        ]
    )
    full = Subject("k", "acme", "red", "ann", "big")
    assert names(book, full) == {
        "org", "team", "user", "key-model", "model", "family", "all", "each-user\x1fann", "each-model\x1fbig",
    }  # fmt: skip
    assert names(book, Subject("k", "acme", None, "bob", "small")) == {
        "org", "all", "each-user\x1fbob", "each-model\x1fsmall",
    }  # fmt: skip
    assert names(book, Subject("x", model=None)) == {"all"}
    assert names(book, Subject("x"), tokens_per_minute=5) == {"all", "key:x:tokens_per_minute"}


def test_counters_of_an_organisation_live_together_and_those_of_all_apart() -> None:
    rules = [
        LimitRule("o", Kind.TOKENS_PER_MINUTE, 1, org_id="acme"),
        LimitRule("m", Kind.TOKENS_PER_MINUTE, 1, model="x"),
    ]
    plan = Rulebook(rules).plan(Subject("k", "acme", model="x"), Limits(requests_per_minute=1))
    assert {named(meter): meter.tag for meter in plan.meters} == {
        "key:k:requests_per_minute": "acme", "o": "acme", "m": ALL,
    }  # fmt: skip


async def test_the_prepaid_balance_of_an_organisation_is_shared_by_its_keys(limiter) -> None:
    book = Rulebook(credits={"org:acme": 100, "key:k": 5})
    first, second = (book.plan(Subject(key, "acme"), Limits()) for key in ("k", "j"))
    await admit(limiter, first, ask(1, 1, nano=60))
    with pytest.raises(LimitReached, match=r"Insufficient Balance: 0\.00000004 is left") as refusal:
        await admit(limiter, second, ask(1, 1, nano=60))
    assert refusal.value.rule.kind is Kind.BALANCE


async def test_a_soft_limit_refuses_nothing_and_tells(limiter) -> None:
    rule = LimitRule("soft", Kind.TOKENS_PER_DAY, 30, key_id="k", soft=True)
    plan = Rulebook([rule]).plan(Subject("k"), Limits())
    first, second = [await admit(limiter, plan, ask(10, 4096)) for _ in range(2)]
    limiter.settle(first, Amounts(20))
    assert first.crossed == []  # what others hold, and mostly give back, is not used
    limiter.settle(second, Amounts(20))
    (crossing,) = second.crossed
    assert (crossing.meter.rule, crossing.taken) == (rule, 40)


async def test_a_soft_limit_of_requests_tells_when_they_come(limiter) -> None:
    plan = Rulebook([LimitRule("soft", Kind.CONCURRENT_REQUESTS, 1, key_id="k", soft=True)]).plan(
        Subject("k"), Limits()
    )
    assert (await admit(limiter, plan, ask(1, 1))).crossed == []
    assert [crossing.taken for crossing in (await admit(limiter, plan, ask(1, 1))).crossed] == [2]


async def test_a_soft_rate_refills_before_it_is_charged(limiter, clock) -> None:
    rule = LimitRule("soft", Kind.TOKENS_PER_MINUTE, 60, key_id="k", soft=True)
    plan = Rulebook([rule]).plan(Subject("k"), Limits())
    limiter.settle(await admit(limiter, plan, ask(0, 60)), Amounts(60))
    clock.seconds = 3600
    limiter.settle(reservation := await admit(limiter, plan, ask(0, 61)), Amounts(61))
    (crossing,) = reservation.crossed
    assert crossing.taken == 61


async def test_headers_are_of_the_tightest_rule(limiter) -> None:
    rules = [
        LimitRule("org", Kind.TOKENS_PER_MINUTE, 50, org_id="acme"),
        LimitRule("day", Kind.TOKENS_PER_DAY, 40, org_id="acme"),
        LimitRule("rpm", Kind.REQUESTS_PER_MINUTE, 30, org_id="acme"),
    ]
    plan = Rulebook(rules).plan(Subject("k", "acme"), Limits(requests_per_minute=60, tokens_per_minute=1000))
    headers = rate_limit_headers((await admit(limiter, plan, ask(5, 5))).standings)
    assert headers == {
        "x-ratelimit-limit-requests": "30",
        "x-ratelimit-remaining-requests": "29",
        "x-ratelimit-reset-requests": "2.000s",
        "x-ratelimit-limit-tokens": "40",
        "x-ratelimit-remaining-tokens": "30",
        "x-ratelimit-reset-tokens": "86400.000s",
    }


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "zone", "at", "start", "end"),
    [
        ("day", "UTC", "2026-11-23T12:00", "2026-11-23T00:00", "2026-11-24T00:00"),
        ("day", "Asia/Shanghai", "2026-11-23T17:00", "2026-11-23T16:00", "2026-11-24T16:00"),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "Asia/Shanghai", "2026-11-30T15:59", "2026-10-31T16:00", "2026-11-30T16:00"),
        ("day", "America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00"),  # 23 hours
        ("day", "America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),  # 25 hours
    ],
)
def test_days_and_months_are_those_of_a_time_zone(period, zone, at, start, end) -> None:
    assert window_of(period, zone, utc(at)) == Window(utc(start), utc(end))


def test_a_calendar_stays_in_the_window_that_it_had_reached() -> None:
    calendar = Calendar()
    december = calendar.window("month", "UTC", DECEMBER)
    assert calendar.window("month", "UTC", DECEMBER - 1) == december


@pytest.mark.parametrize("value", [0, -5])
def test_a_limit_below_one_is_refused_by_name(value: int) -> None:
    with pytest.raises(ValueError, match=f"tokens_per_minute={value}"):
        Limits(tokens_per_minute=value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": Kind.TOKENS_PER_MINUTE, "limit": 0}, "limit=0"),
        ({"kind": Kind.TOKENS_PER_MINUTE, "limit": 2**53}, "limit="),
        ({"kind": Kind.MONEY_PER_DAY, "limit": 1, "on_failure": "share"}, "on_failure=share"),
        ({"kind": Kind.TOKENS_PER_DAY, "limit": 1, "time_zone": "Mars/Base"}, "time_zone='Mars/Base'"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LimitRule("r", **fields)
