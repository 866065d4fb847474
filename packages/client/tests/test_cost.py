"""Prices are exact, dated and never guessed; totals are of all answers; estimates say that they are."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest

from deepseek_client import ModelPrice, PriceTable, Rates, Usage, cost
from deepseek_client.endpoints import estimate_tokens
from deepseek_client.prices import DEEPSEEK_PRICES
from deepseek_client.types import ResponseUsage

USAGE = Usage(prompt_tokens=1000, completion_tokens=200, prompt_cache_hit_tokens=600, prompt_cache_miss_tokens=400)
THURSDAY = datetime(2026, 11, 26, 12, tzinfo=UTC)
OFF_PEAK = Decimal("0.003") * 600 / 10**6 + Decimal("0.15") * 400 / 10**6 + Decimal("0.60") * 200 / 10**6


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "factor"),
    [
        ("2026-11-26T00:59:59", 1),  # a Thursday
        ("2026-11-26T01:00:00", 2),
        ("2026-11-26T03:59:59", 2),
        ("2026-11-26T04:00:00", 1),
        ("2026-11-26T06:00:00", 2),
        ("2026-11-26T09:59:59", 2),
        ("2026-11-26T10:00:00", 1),
        ("2026-11-28T02:00:00", 1),  # a Saturday
        ("2026-10-01T02:00:00", 1),  # a holiday
        ("2026-10-08T02:00:00", 2),
    ],
)
def test_the_peak_costs_twice_as_much(moment, factor):
    assert cost(USAGE, "deepseek-flash", at(moment)) == OFF_PEAK * factor


@pytest.mark.parametrize(
    ("model", "moment"),
    [
        ("deepseek-chat", "2026-11-26T12:00:00"),  # retired
        ("gpt-4", "2026-11-26T12:00:00"),
        ("deepseek-flash", "2026-09-01T12:00:00"),  # before the table begins
        ("deepseek-flash", "2027-02-08T02:00:00"),  # a peak hour, if it is no holiday
    ],
)
def test_what_is_not_known_has_no_price(model, moment):
    assert cost(USAGE, model, at(moment)) is None


def test_off_peak_hours_are_known_beyond_the_known_holidays():
    assert cost(USAGE, "deepseek-flash", at("2027-02-08T12:00:00")) == OFF_PEAK


def test_a_time_may_be_seconds_or_of_any_zone_but_not_of_none():
    beijing = THURSDAY.astimezone(timezone(timedelta(hours=8)))
    assert cost(USAGE, "deepseek-flash", beijing) == cost(USAGE, "deepseek-flash", THURSDAY.timestamp()) == OFF_PEAK
    with pytest.raises(ValueError, match="has no time zone"):
        cost(USAGE, "deepseek-flash", THURSDAY.replace(tzinfo=None))
    assert cost(USAGE, "deepseek-flash") in (OFF_PEAK, OFF_PEAK * 2, None)


def test_cache_hits_are_read_under_both_names_and_of_responses_too():
    openai = Usage(prompt_tokens=1000, completion_tokens=200, prompt_tokens_details={"cached_tokens": 600})
    response = ResponseUsage(input_tokens=1000, output_tokens=200, input_tokens_details={"cached_tokens": 600})
    assert cost(openai, "deepseek-flash", THURSDAY) == cost(response, "deepseek-flash", THURSDAY) == OFF_PEAK
    silent = Usage(prompt_tokens=1_000_000)
    assert cost(silent, "deepseek-v4-pro", THURSDAY) == Decimal("0.66")


RATES = Rates(Decimal("0.1"), Decimal(1), Decimal(2))


def test_a_table_of_one_s_own_has_its_dates_and_hours():
    table = PriceTable(
        (
            ModelPrice("m", at("2026-01-01T00:00:00"), RATES, peak=Rates(Decimal(1), Decimal(10), Decimal(20))),
            ModelPrice("m", at("2026-02-01T00:00:00"), Rates(Decimal(0), Decimal(0), Decimal(5))),
        ),
        currency="CNY",
        peak_hours=((time(9), time(17)),),
        holidays=frozenset({date(2026, 1, 6)}),
    )
    output = Usage(completion_tokens=1_000_000)
    moments = ["2026-01-05T08:00:00", "2026-01-05T09:00:00", "2026-01-06T09:00:00", "2026-02-02T09:00:00"]
    assert [cost(output, "m", at(moment), prices=table) for moment in moments] == [2, 20, 2, 5]
    assert cost(output, "m", at("2025-12-31T00:00:00"), prices=table) is None


def test_the_table_says_how_old_it_is():
    assert DEEPSEEK_PRICES.checked_on >= date(2026, 11, 15)
    assert DEEPSEEK_PRICES.currency == "USD"


BODY = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200, "prompt_cache_hit_tokens": 600}
CREATED = int(THURSDAY.timestamp())


async def test_an_answer_knows_its_cost_by_the_model_that_was_asked_for(server, connect, kit):
    server.script(kit.reply(kit.CHAT | {"usage": BODY, "created": CREATED, "model": "other"}))
    client = connect(profile="deepseek")
    answer = await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, model="deepseek-flash"))
    assert answer.cost == OFF_PEAK
    assert "cost" not in answer.to_wire()
    answer = await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, model="unknown"))
    assert answer.cost is None
    totals = client.usage
    assert (totals.requests, totals.prompt_tokens, totals.completion_tokens) == (2, 2000, 400)
    assert (totals.cost, totals.unpriced_requests, totals.cache_hit_ratio) == (OFF_PEAK, 1, 0.6)
    assert totals.saved == (Decimal("0.15") - Decimal("0.003")) * 600 / 10**6


async def test_another_server_has_no_price_but_the_caller_s(server, connect, kit):
    server.script(kit.reply(kit.GENERATION | {"usage": BODY, "created": CREATED, "model": "deepseek-flash"}))
    client = connect()
    assert (await kit.settle(client.generate("Hi"))).cost is None
    table = PriceTable((ModelPrice("deepseek-flash", at("2026-01-01T00:00:00"), RATES),))
    priced = client.with_options(prices=table)
    expected = RATES.cost(Usage(**BODY))
    assert (await kit.settle(priced.generate("Hi"))).cost == expected
    assert client.usage == priced.usage
    assert (client.usage.requests, client.usage.cost, client.usage.total_tokens) == (2, expected, 2400)


async def test_a_stream_is_counted_once_when_it_is_over(server, connect, kit):
    chunks = [kit.chat_event("Hel") | {"created": CREATED}, kit.chat_event("lo", "stop") | {"usage": BODY}]
    server.script(kit.events(*chunks))
    client = connect(profile="deepseek", default_model="deepseek-flash")
    async with kit.entered(
        await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, stream=True))
    ) as stream:
        assert stream.cost is None
        await kit.collect(stream)
    assert stream.cost == stream.snapshot.cost == OFF_PEAK
    async with kit.entered(client.generate_stream("Hi")) as stream:
        await kit.collect(stream)
    assert stream.generation.cost == OFF_PEAK
    assert (client.usage.requests, client.usage.cost) == (2, OFF_PEAK * 2)


async def test_a_stream_of_events_knows_its_cost_too(server, connect, kit):
    chunks = [kit.chat_event("Hel") | {"created": CREATED - 10 * 3600}, kit.chat_event("lo", "stop") | {"usage": BODY}]
    server.script(kit.events(*chunks))
    client = connect(profile="deepseek", default_model="deepseek-flash")
    async with kit.entered(client.chat.completions.stream(messages=kit.MESSAGES)) as stream:
        await kit.collect(stream)
    assert stream.cost == client.usage.cost == OFF_PEAK * 2  # it began at 2 o'clock


async def test_a_stream_that_never_says_its_tokens_is_not_counted(server, connect, kit):
    server.script(kit.events(kit.text_event("Hello", "stop")))
    client = connect()
    await kit.collect(client.generate_stream("Hi"))
    assert client.usage.requests == 0
    assert client.usage.cache_hit_ratio is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("hello worl", 3), ("宁德时代", 3), ("宁德时代 2026 annual", 6), ("ｆｕｌｌ，", 3)],
)
def test_an_estimate_follows_deepseek_s_rule_and_says_so(text, tokens):
    estimate = estimate_tokens(text)
    assert (int(estimate), estimate.is_estimate, str(estimate)) == (tokens, True, f"about {tokens}")


async def test_tokens_are_counted_by_the_server(server, connect, kit):
    server.script(kit.reply({"count": 3, "max_model_len": 64, "tokens": [1, 2, 3]}))
    tokens = connect().tokens
    assert tokens.estimate("Hello").is_estimate
    count = await kit.settle(tokens.count("Hello", add_special_tokens=False))
    assert (count.tokens, count.is_estimate, count.token_ids, str(count)) == (3, False, [1, 2, 3], "3")
    await kit.settle(tokens.count(kit.MESSAGES, model="m"))
    assert [(request.path, request.json) for request in server.requests] == [
        ("/tokenize", {"prompt": "Hello", "add_special_tokens": False}),
        ("/tokenize", {"messages": kit.MESSAGES, "model": "m"}),
    ]
