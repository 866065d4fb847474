"""Old rows are deleted some at a time, while answers stay as they are."""

from dataclasses import replace

import pytest

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.rules import Scope
from deepseek_gateway.storage import rollups
from deepseek_gateway.storage.rollups import RollupTable
from deepseek_gateway.storage.store import Store
from deepseek_gateway.usage.question import Dimension, Question, UsageLine
from deepseek_gateway.usage.zones import HOUR_S

HOUR = 480_000
BASE = LedgerRow(
    request_id="r", attempt=1, key_id="k", route="/v1/generate", model="m", upstream="u", stream=True,
    status="finished", end_reason="stop", http_status=200, prompt_tokens=7, completion_tokens=1,
    cached_tokens=0, accuracy="exact", latency_ms=1.5, ttft_ms=None, created=HOUR * HOUR_S, cost_nano=3,
)  # fmt: skip


def rows(count: int, name: str = "r") -> list[LedgerRow]:
    """Rows of one hour, ten at each moment."""
    return [
        replace(BASE, request_id=f"{name}{at}", key_id=f"k{at % 3}", created=BASE.created + at // 10, prompt_tokens=at)
        for at in range(count)
    ]


def told(store: Store) -> tuple[list[UsageLine], list[UsageLine], int, int]:
    """All that is said about the hour."""
    since, until = BASE.created, BASE.created + HOUR_S
    slots = store.statistics.slots(since, until, HOUR_S)
    bins = store.statistics.bins("latency_ms", since, until, HOUR_S)
    return (
        store.usage.answer(Question(by=(Dimension.KEY, Dimension.MODEL))),
        store.usage.answer(Question(by=(Dimension.ROUTE, Dimension.UPSTREAM))),
        store.ledger.spent(Scope(key_id="k1"), "tokens", BASE.created, BASE.created + HOUR_S),
        sum(slot.requests for slot in slots) + sum(bins[HOUR].values()),
    )


@pytest.fixture
def kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(rollups, "FOLDED", 7)  # fewer than there are at one moment
    store.ledger.insert(rows(45))
    assert store.rollups.roll(HOUR)
    return store


def test_answers_are_the_same_after_each_part_of_the_rows(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before, parts = told(kept), list[int]()
    fold = RollupTable._fold

    def watched(table: RollupTable, hour: int) -> tuple[int, bool]:
        assert told(kept) == before
        found = fold(table, hour)
        parts.append(found[0])
        return found

    monkeypatch.setattr(RollupTable, "_fold", watched)
    assert kept.rollups.prune(HOUR) == 45
    assert sum(parts) == 45
    assert len(parts) > 3
    assert told(kept) == before
    assert kept.ledger.rows() == []
    assert kept.database.read("SELECT count(*) FROM usage_hours") == [(1,)]  # merged


def test_what_an_interrupted_deletion_leaves_goes_with_the_next(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before, fold = told(kept), RollupTable._fold

    def interrupted(table: RollupTable, hour: int) -> tuple[int, bool]:
        fold(table, hour)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RollupTable, "_fold", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept.rollups.prune(HOUR)
    assert told(kept) == before
    kept.ledger.insert(rows(3, "late"))
    after = told(kept)
    assert kept.rollups.hours_of_rows(HOUR + 1) == [HOUR]
    assert kept.rollups.prune(HOUR) == 38
    assert told(kept) == after
    assert kept.ledger.rows() == []


def test_rows_whose_sums_are_not_theirs_stay(kept: Store) -> None:
    kept.database.write("DELETE FROM ledger WHERE request_id = 'r5'")
    assert kept.rollups.prune(HOUR) is None
    assert len(kept.ledger.rows()) == 44
