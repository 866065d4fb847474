"""What the ledger adds up to, in both stores."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.errors import StoreSlowError
from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.statistics import BIN_BOUNDS_MS, MEASURED, StatisticsTable, percentile
from deepseek_gateway.storage.store import Store
from deepseek_gateway.testing.rows import ledger_row
from deepseek_gateway.usage.lines import safe_cell

DAY = 1_800_000_000 // 86400 * 86400


def row(**values: object) -> LedgerRow:
    return ledger_row(**{"created": float(DAY), **values})


@pytest.fixture
def statistics(store: Store) -> StatisticsTable:
    store.ledger.insert(
        [
            row(),
            row(created=DAY + 59.9, status="failed", model=None, org_id="org-1"),
            row(created=DAY + 60.0, key_id="key-b", latency_ms=3000.0, cost_nano=7, org_id="org-1"),
            row(created=DAY + 86400.0, key_id="key-b", ttft_ms=None, reasoning_tokens=3),
        ]
    )
    return store.statistics


def test_slots_hold_what_happened_in_them(statistics: StatisticsTable) -> None:
    slots = statistics.slots(DAY, DAY + 86400, 60)
    assert {(slot.number - DAY // 60, slot.status, slot.requests) for slot in slots} == {
        (0, "finished", 1),
        (0, "failed", 1),
        (1, "finished", 1),
    }
    assert sum(slot.cost_nano for slot in slots) == 7


def test_latencies_are_counted_in_bins(statistics: StatisticsTable) -> None:
    bins = statistics.bins("latency_ms", DAY, DAY + 86400, 60)
    assert {number - DAY // 60 for number in bins} == {0, 1}
    median = percentile(bins[DAY // 60], 0.5)
    assert median is not None
    assert 100 / 1.42 <= median <= 100 * 1.42
    assert sum(statistics.bins("ttft_ms", DAY, DAY + 2 * 86400, 60)[DAY // 60].values()) == 1


def test_a_report_that_takes_too_long_is_ended_and_the_store_goes_on(database: Database) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreSlowError):
        database.report(endless, timeout_s=0.05)
    assert database.read("SELECT 1") == [(1,)]
    assert database.report("SELECT 2") == [(2,)]


@given(st.lists(st.floats(0.001, 700_000), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_within_its_bin(values: list[float], share: float) -> None:
    bins: dict[int, int] = {}
    for value in values:
        at = next((at for at, bound in enumerate(BIN_BOUNDS_MS) if value <= bound), len(BIN_BOUNDS_MS))
        bins[at] = bins.get(at, 0) + 1
    exact = sorted(values)[max(0, -(-int(share * len(values) * 1e6) // 10**6) - 1)]
    found = percentile(bins, share)
    assert found is not None
    assert found <= max(exact, 1) * 1.42 + 1e-6
    assert found >= min(exact / 1.42, BIN_BOUNDS_MS[-1]) - 1.0


@given(st.text())
def test_no_cell_begins_a_formula(text: str) -> None:
    cell = safe_cell(text)
    assert cell.lstrip("'") == text.lstrip("'")
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_charts_of_weeks_are_the_same_from_hourly_sums(store: Store) -> None:
    rng = Random(2)
    since, until, slot_s = DAY, DAY + 86400, 3 * 3600

    def rows(number: int) -> list[LedgerRow]:
        return [
            row(
                created=DAY + rng.random() * 86400,
                status=rng.choice(("finished", "finished", "failed")),
                latency_ms=rng.expovariate(0.001),
                ttft_ms=rng.choice((None, rng.random() * 50)),
                cost_nano=rng.randrange(9),
            )
            for _ in range(number)
        ]

    def check(kept: list[LedgerRow]) -> None:
        slots = {(slot.number, slot.status): slot for slot in store.statistics.slots(since, until, slot_s)}
        for (number, status), slot in slots.items():
            its = [each for each in kept if each.status == status and int(each.created // slot_s) == number]
            assert slot.requests == len(its)
            assert slot.cost_nano == sum(each.cost_nano for each in its)
            assert slot.cached_tokens == 4 * len(its)
        assert sum(slot.requests for slot in slots.values()) == len(kept)
        for measured in MEASURED:
            expected: Counter[tuple[int, int]] = Counter()
            for each in kept:
                value = getattr(each, measured)
                if each.status == "finished" and value is not None:
                    expected[int(each.created // slot_s), sum(value > bound for bound in BIN_BOUNDS_MS)] += 1
            bins = store.statistics.bins(measured, since, until, slot_s)
            assert {(number, at): count for number, found in bins.items() for at, count in found.items()} == expected

    kept = rows(150)
    store.ledger.insert(kept)
    check(kept)
    for hour in store.rollups.due(DAY // 3600 + 20):
        assert store.rollups.roll(hour)
    check(kept)
    kept += (late := rows(30))
    store.ledger.insert(late)
    check(kept)
    for hour in store.rollups.due(DAY // 3600 + 8):
        assert store.rollups.roll(hour)
    assert all(store.rollups.prune(hour) is not None for hour in store.rollups.hours_of_rows(DAY // 3600 + 8))
    kept += (late := rows(30))  # some to hours whose rows are gone
    store.ledger.insert(late)
    check(kept)
