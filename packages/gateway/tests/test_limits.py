"""Limits as arithmetic: a given clock, no sockets."""

import pytest

from deepseek_gateway.limits.headers import rate_limit_headers
from deepseek_gateway.limits.limiter import Ask, LocalLimiter
from deepseek_gateway.limits.meters import month_of, month_start, next_month_start
from deepseek_gateway.limits.rules import LimitReached, Limits, Now, Rule

NOVEMBER = 1795392000.0  # 2026-11-23T00:00:00Z


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, NOVEMBER + seconds)


def test_a_rested_key_may_use_a_minutes_requests_at_once_and_then_waits_for_the_pace() -> None:
    limiter, limits = LocalLimiter(), Limits(requests_per_minute=6)
    for _ in range(6):
        limiter.admit("k", limits, Ask(1, 1), at(0))
    with pytest.raises(LimitReached) as refusal:
        limiter.admit("k", limits, Ask(1, 1), at(0))
    assert refusal.value.rule is Rule.REQUESTS_PER_MINUTE
    assert refusal.value.retry_after_s == pytest.approx(10)
    with pytest.raises(LimitReached):
        limiter.admit("k", limits, Ask(1, 1), at(9.9))
    limiter.admit("k", limits, Ask(1, 1), at(10))


def test_tokens_come_back_at_the_rate_and_at_once_when_they_were_not_used() -> None:
    limiter, limits = LocalLimiter(), Limits(tokens_per_minute=60)
    reservation = limiter.admit("k", limits, Ask(10, 50), at(0))
    with pytest.raises(LimitReached) as refusal:
        limiter.admit("k", limits, Ask(10, 20), at(0))
    assert refusal.value.retry_after_s == pytest.approx(30)
    limiter.settle(reservation, 20, at(0))
    limiter.admit("k", limits, Ask(10, 30), at(0))


def test_a_request_that_never_fits_says_so_instead_of_when_to_retry() -> None:
    with pytest.raises(LimitReached) as refusal:
        LocalLimiter().admit("k", Limits(tokens_per_minute=60), Ask(100, 1), at(0))
    assert refusal.value.retry_after_s is None
    assert "tokens_per_minute=60" in refusal.value.message


def test_a_refusal_by_one_rule_charges_no_other() -> None:
    limiter = LocalLimiter()
    limits = Limits(requests_per_minute=10, tokens_per_minute=100, concurrent_requests=1, tokens_per_month=1000)
    limiter.admit("k", limits, Ask(10, 10), at(0))
    before = rate_limit_headers(limiter.meters("k"), limits, at(0))
    with pytest.raises(LimitReached) as refusal:
        limiter.admit("k", limits, Ask(10, 10), at(0))
    assert refusal.value.rule is Rule.CONCURRENT_REQUESTS
    assert rate_limit_headers(limiter.meters("k"), limits, at(0)) == before


def test_the_months_budget_counts_what_is_held_and_begins_again_with_the_month() -> None:
    limiter, limits = LocalLimiter({"k": 80}, NOVEMBER), Limits(tokens_per_month=100)
    running = limiter.admit("k", limits, Ask(5, 10), at(0))
    with pytest.raises(LimitReached) as refusal:
        limiter.admit("k", limits, Ask(5, 10), at(0))
    assert "5 of tokens_per_month=100 are left" in refusal.value.message
    assert refusal.value.message.endswith("2026-12-01T00:00:00Z")
    december = Now(2000.0, next_month_start(NOVEMBER))
    limiter.admit("k", limits, Ask(5, 90), december)
    limiter.settle(running, 15, december)  # November's tokens do not burden December
    assert limiter.meters("k").month.taken == 95


def test_an_extension_gives_what_is_left_and_no_more() -> None:
    limiter, limits = LocalLimiter(), Limits(tokens_per_month=100)
    reservation = limiter.admit("k", limits, Ask(10, 20), at(0))
    assert limiter.extend(reservation, 50, at(0)) == 50
    assert limiter.extend(reservation, 50, at(0)) == 20
    assert limiter.extend(reservation, 50, at(0)) == 0
    assert limiter.reached(reservation, at(0)).rule is Rule.TOKENS_PER_MONTH


def test_settling_twice_gives_back_once() -> None:
    limiter, limits = LocalLimiter(), Limits(tokens_per_minute=100, concurrent_requests=5)
    reservation = limiter.admit("k", limits, Ask(10, 40), at(0))
    limiter.settle(reservation, 10, at(0))
    limiter.settle(reservation, 0, at(0))
    assert limiter.meters("k").in_flight == 0
    assert limiter.meters("k").tokens.available(100, 1000.0) == pytest.approx(90)


def test_a_clock_that_goes_back_gives_no_tokens() -> None:
    limiter, limits = LocalLimiter(), Limits(tokens_per_minute=60)
    limiter.admit("k", limits, Ask(0, 60), at(100))
    for seconds in (0, 50, 100):
        with pytest.raises(LimitReached):
            limiter.admit("k", limits, Ask(0, 1), at(seconds))


def test_keys_do_not_share_limits() -> None:
    limiter, limits = LocalLimiter(), Limits(requests_per_minute=1)
    limiter.admit("one", limits, Ask(1, 1), at(0))
    limiter.admit("two", limits, Ask(1, 1), at(0))


def test_months_are_calendar_months_in_utc() -> None:
    assert month_of(NOVEMBER) == "2026-11"
    assert month_of(next_month_start(NOVEMBER)) == "2026-12"
    assert month_of(month_start(NOVEMBER) - 1) == "2026-10"
    december = next_month_start(NOVEMBER)
    assert month_of(next_month_start(december)) == "2027-01"


@pytest.mark.parametrize("value", [0, -5])
def test_a_limit_below_one_is_refused_by_name(value: int) -> None:
    with pytest.raises(ValueError, match=f"tokens_per_minute={value}"):
        Limits(tokens_per_minute=value)
