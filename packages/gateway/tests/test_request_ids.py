"""Names of requests sort by time, and are never given twice."""

import time

import pytest

from deepseek_gateway.edge.request_ids import new_request_id


def test_request_ids_sort_by_the_time_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for at_s in (1_000_000_000, 1_800_000_000, 1_800_000_001, 9_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda at_s=at_s: at_s * 1_000_000_000)
        made.append(new_request_id())
    assert made == sorted(made)
    assert {len(name) for name in made} == {28}
    assert all(name == name.lower() for name in (name[:15] for name in made))  # PostgreSQL may sort without case


def test_request_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_000_000_000)
    assert len({new_request_id() for _ in range(10_000)}) == 10_000
