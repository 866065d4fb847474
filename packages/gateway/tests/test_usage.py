"""Usage by any dimension: rollups and rows give the answer that adding up all rows would, in both stores."""

import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_gateway.auth.records import INFERENCE, KeyRecord
from deepseek_gateway.errors import ApiError
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.storage.store import Store
from deepseek_gateway.usage.ask import UsageAsk
from deepseek_gateway.usage.question import SUMS, Dimension, Order, Question
from deepseek_gateway.usage.zones import HOUR_S

# The night in which Berlin's clocks go back, so that a day has 25 hours.
START = int(datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp())
HOURS = 48
NUMBERS = itertools.count()
TAGS = {"key-a": ("red", "blue"), "key-b": ("red",), "key-c": ()}
TABLES = ("ledger", "usage_hours", "usage_key_hours", "usage_marks")


def row(**values: Any) -> LedgerRow:
    first = LedgerRow(
        request_id=f"req-{next(NUMBERS)}", attempt=1, key_id="key-a", route="/v1/generate", model="m", upstream="e",
        stream=True, status="finished", end_reason="stop", http_status=200, prompt_tokens=10, completion_tokens=5,
        cached_tokens=4, accuracy="exact", latency_ms=1.0, ttft_ms=None, created=float(START),
    )  # fmt: skip
    return replace(first, **values)


ROWS = st.builds(
    row,
    created=st.one_of(
        st.floats(START, START + HOURS * HOUR_S, exclude_max=True),
        st.integers(0, HOURS - 1).map(lambda hour: float(START + hour * HOUR_S)),
    ),
    key_id=st.sampled_from(sorted(TAGS)),
    org_id=st.sampled_from([None, "org-1"]),
    team_id=st.sampled_from([None, "team-1"]),
    user_id=st.sampled_from([None, "user-1"]),
    model=st.sampled_from([None, "m", "n"]),
    served_model=st.sampled_from([None, "deep"]),
    upstream=st.sampled_from([None, "e", "f"]),
    route=st.sampled_from(["/v1/generate", "/v1/chat/completions"]),
    status=st.sampled_from(["finished", "failed"]),
    end_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=st.integers(0, 2**33),
    completion_tokens=st.integers(0, 100),
    reasoning_tokens=st.integers(0, 100),
    cost_nano=st.sampled_from([0, 7, 2**40]),
)
QUESTIONS = st.builds(
    Question,
    by=st.lists(st.sampled_from(Dimension), min_size=1, max_size=3, unique=True).map(tuple),
    since=st.one_of(st.none(), st.integers(-2, HOURS * 4).map(lambda quarter: float(START + quarter * 900))),
    until=st.one_of(st.none(), st.integers(-2, HOURS * 4).map(lambda quarter: float(START + quarter * 900))),
    zone=st.sampled_from(["UTC", "Asia/Shanghai", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"]),
    only=st.one_of(
        st.just(()),
        st.sampled_from(
            [
                (Dimension.KEY, "key-a"), (Dimension.ORG, ""), (Dimension.ORG, "org-1"), (Dimension.TAG, "red"),
                (Dimension.TAG, ""), (Dimension.MODEL, "m"), (Dimension.MODEL, ""), (Dimension.UPSTREAM, "e"),
                (Dimension.SERVED_MODEL, "deep"), (Dimension.STATUS, "failed"),
            ]
        ).map(lambda one: (one,)),
    ),
    order=st.sampled_from(Order),
)  # fmt: skip


def added_up(rows: list[LedgerRow], question: Question) -> Counter[tuple[tuple[str, ...], str]]:
    """The answer by adding up all rows: sums by labels and name."""
    found: Counter[tuple[tuple[str, ...], str]] = Counter()
    for each in rows:
        if question.since is not None and each.created < question.since:
            continue
        if question.until is not None and each.created >= question.until:
            continue
        if any(value not in values(each, dimension, question.zone) for dimension, value in question.only):
            continue
        for labels in itertools.product(*(values(each, dimension, question.zone) for dimension in question.by)):
            found[labels, "requests"] += 1
            found[labels, "failed"] += each.status == "failed"
            for name in SUMS[2:]:
                found[labels, name] += getattr(each, name)
    return found


def values(each: LedgerRow, dimension: Dimension, zone: str) -> list[str]:
    # Whole seconds: a datetime rounds to microseconds, and an hour's last moment to the next one's first.
    local = datetime.fromtimestamp(int(each.created), UTC).astimezone(ZoneInfo(zone))
    if dimension is Dimension.TAG:
        return list(TAGS[each.key_id]) or [""]
    return [
        {
            Dimension.HOUR: local.strftime("%Y-%m-%dT%H:00"),
            Dimension.DAY: local.strftime("%Y-%m-%d"),
            Dimension.KEY: each.key_id,
            Dimension.ORG: each.org_id or "",
            Dimension.TEAM: each.team_id or "",
            Dimension.USER: each.user_id or "",
            Dimension.MODEL: each.model or "",
            Dimension.SERVED_MODEL: each.served_model or "",
            Dimension.ROUTE: each.route,
            Dimension.UPSTREAM: each.upstream or "",
            Dimension.STATUS: each.status,
            Dimension.REASON: each.end_reason,
        }[dimension]
    ]


def answered(store: Store, question: Question) -> Counter[tuple[tuple[str, ...], str]]:
    lines = store.usage.answer(question)
    assert len({line.labels for line in lines}) == len(lines)
    return Counter({(line.labels, name): getattr(line, name) for line in lines for name in SUMS})


def same(found: Counter[tuple[tuple[str, ...], str]], expected: Counter[tuple[tuple[str, ...], str]]) -> bool:
    return {key: value for key, value in found.items() if value} == {
        key: value for key, value in expected.items() if value
    }


@pytest.fixture
def tagged(store: Store) -> Store:
    for key_id, tags in TAGS.items():
        store.keys.insert(KeyRecord(key_id, key_id, f"name of {key_id}", INFERENCE, 1.0, tags=tags))
    return store


def emptied(store: Store) -> Store:
    for table in TABLES:
        store.database.write(f"DELETE FROM {table}")
    store.database.write("UPDATE usage_floor SET hour = 0")
    return store


STEPS = st.one_of(
    st.tuples(st.just("insert"), st.lists(ROWS, min_size=1, max_size=8)),
    st.tuples(st.just("roll"), st.integers(0, HOURS)),
    st.tuples(st.just("correct"), st.integers(0, 1000)),
    st.tuples(st.just("prune"), st.integers(0, HOURS)),
    st.tuples(st.just("rebuild"), st.just(0)),
)


class Books:
    """A store, and all rows that it ever had."""

    def __init__(self, store: Store) -> None:
        self.store = emptied(store)
        self.rows: list[LedgerRow] = []
        self.first, self.end, self.pruned = START // HOUR_S, START // HOUR_S + HOURS, 0

    def insert(self, rows: list[LedgerRow]) -> None:
        self.store.ledger.insert(rows)
        self.store.ledger.insert(rows[:1])  # a replay of the journal changes nothing
        self.rows += rows

    def roll(self, hours: int) -> None:
        assert all(self.store.rollups.roll(hour) for hour in self.store.rollups.due(self.first + hours))

    def correct(self, number: int) -> None:
        kept = [at for at, each in enumerate(self.rows) if each.created >= self.pruned * HOUR_S]
        if not kept:
            return
        at = kept[number % len(kept)]
        self.rows[at] = replace(self.rows[at], prompt_tokens=number)
        sql = "UPDATE ledger SET prompt_tokens = :tokens WHERE request_id = :name"
        self.store.database.write(sql, {"tokens": number, "name": self.rows[at].request_id})
        self.store.rollups.mark_all(0, self.end)

    def prune(self, hours: int) -> None:
        for hour in self.store.rollups.hours_of_rows(self.first + hours):
            if self.store.rollups.prune(hour) is None:  # it was not rolled yet
                break
            self.pruned = max(self.pruned, hour + 1)

    def rebuild(self, _: int) -> None:
        self.store.rollups.mark_all(0, self.end)
        self.roll(HOURS)

    def check(self, question: Question) -> None:
        try:
            found = answered(self.store, question)
        except ApiError as error:
            if error.code == "rows_deleted" and self.pruned:
                return
            raise
        assert same(found, added_up(self.rows, question))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=1, max_size=12), questions=st.lists(QUESTIONS, min_size=3, max_size=6))
def test_every_answer_is_that_of_all_rows_whatever_was_rolled_late_corrected_or_deleted(
    tagged: Store, steps: list[tuple[str, Any]], questions: list[Question]
) -> None:
    books = Books(tagged)
    for step, argument in steps:
        getattr(books, step)(argument)
    for question in questions:
        books.check(question)


def test_rows_that_come_while_an_hour_is_rolled_leave_it_due(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.ledger.insert([row()])
    report = store.database.report
    late = [row()]

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        found = report(*args, **kwargs)
        store.ledger.insert([late.pop()] if late else [])
        return found

    monkeypatch.setattr(store.database, "report", overtaken)
    hour = START // HOUR_S
    assert not store.rollups.roll(hour)
    assert store.rollups.due(hour + 1) == [hour]
    assert store.rollups.roll(hour)
    assert store.rollups.due(hour + 1) == []
    (line,) = store.usage.answer(Question(by=(Dimension.KEY,)))
    assert (line.requests, line.prompt_tokens) == (2, 20)


def test_old_hours_are_answered_without_their_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.ledger.insert([row(), row(model="n", created=START + 3600.0)])
    for hour in store.rollups.due(START // HOUR_S + 2):
        store.rollups.roll(hour)
    store.database.write("DELETE FROM ledger WHERE model = 'm'")  # behind the gateway's back
    lines = store.usage.answer(Question(by=(Dimension.MODEL,)))
    assert [(line.labels, line.requests) for line in lines] == [(("m",), 1), (("n",), 1)]


def test_lines_come_in_pages_and_the_largest_first(store: Store) -> None:
    store.ledger.insert([row(model=f"m{at}", prompt_tokens=at * 10, cost_nano=100 - at) for at in range(5)])
    by = (Dimension.MODEL,)
    for order, expected in ((Order.LABELS, "01234"), (Order.TOKENS, "43210"), (Order.COST, "01234")):
        whole = [line.labels[0][1:] for line in store.usage.answer(Question(by=by, order=order))]
        paged = [
            line.labels[0][1:]
            for offset in range(0, 6, 2)
            for line in store.usage.answer(Question(by=by, order=order, limit=2, offset=offset))
        ]
        assert whole == paged == list(expected)


@pytest.mark.parametrize(
    ("given_values", "says"),
    [
        ({"group_by": "day,colour"}, "'colour' is none of: hour, day"),
        ({"group_by": "day,day"}, "'day' is there twice"),
        ({"group_by": ""}, "at least 1 character"),
        ({"tz": "Middle/Earth"}, "'Middle/Earth' is no time zone"),
        ({"tz": "../UTC"}, "no time zone"),
        ({"since": "yesterday"}, "date"),
        ({"order": "colour"}, "'labels', 'tokens'"),
        ({"limit": "0"}, "greater than or equal to 1"),
        ({"cursor": "x"}, "integer"),
        ({"model": "a\nb"}, "invisible"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_a_wrong_part_of_a_question_is_told(given_values: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match="validation error") as refused:
        UsageAsk.model_validate_strings(given_values)
    assert says in str(refused.value)


@pytest.mark.parametrize("day", ["0001-01-01", "1969-12-31", "9999-12-31"])
def test_days_outside_of_all_ledgers_are_days_too(store: Store, day: str) -> None:
    store.ledger.insert([row()])
    for zone in ("UTC", "Pacific/Auckland"):
        since = UsageAsk.model_validate_strings({"since": day, "tz": zone})
        until = UsageAsk.model_validate_strings({"until": day, "tz": zone})
        assert len(store.usage.answer(since.question())) + len(store.usage.answer(until.question())) == 1


def test_a_day_is_that_of_the_zone(store: Store) -> None:
    store.ledger.insert([row(created=datetime(2026, 11, 23, hour, tzinfo=UTC).timestamp()) for hour in (15, 16)])
    ask = UsageAsk(group_by="day", tz="Asia/Shanghai", until=datetime(2026, 11, 23, tzinfo=UTC).date())
    assert [line.labels for line in store.usage.answer(ask.question())] == [("2026-11-23",)]
    both = store.usage.answer(Question(by=(Dimension.DAY,), zone="Asia/Shanghai"))
    assert [line.labels for line in both] == [("2026-11-23",), ("2026-11-24",)]
