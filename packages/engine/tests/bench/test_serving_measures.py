"""The arithmetic of the serving benchmark: arrivals, latencies, percentiles."""

import asyncio
import itertools
import random
import statistics

import pytest

from deepseek_engine.bench.serving.lengths import Lengths
from deepseek_engine.bench.serving.load import arrival_times, open_loop
from deepseek_engine.bench.serving.prompts import Prompt
from deepseek_engine.bench.serving.record import Record
from deepseek_engine.bench.serving.summary import percentile, summarize


def test_arrivals_are_a_poisson_process_of_the_asked_rate():
    times = arrival_times(20_000, 50.0, random.Random(1))
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05), "exponential gaps vary as much as they last"


def test_burstiness_keeps_the_rate_and_changes_the_spread():
    times = arrival_times(20_000, 50.0, random.Random(1), burstiness=4.0)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 100, rel=0.05)


async def test_a_request_that_is_sent_late_counts_from_when_it_was_due():
    clock = 0.0

    async def send(prompt: Prompt, record: Record) -> None:
        nonlocal clock
        record.sent_s = clock
        clock += 5.0  # the sender is held up: what is due meanwhile is late
        record.token_s = [clock]
        record.end_s = clock
        await asyncio.sleep(0)

    records: list[Record] = []
    await open_loop([Prompt("a", 1)] * 3, [0.0, 0.0, 0.0], send, lambda: clock, records)
    assert [record.due_s for record in records] == [0.0, 0.0, 0.0]
    assert [record.ttft_ms for record in records] == [5000.0, 10_000.0, 15_000.0]
    assert summarize(records, 3, {}).late_ms.greatest == 10_000.0


def test_time_per_token_leaves_out_the_first_and_uses_the_servers_count():
    record = Record(0, due_s=1.0, sent_s=1.0, token_s=[1.5, 1.7, 2.1], end_s=2.2, output_tokens=7, is_counted=True)
    assert record.ttft_ms == pytest.approx(500)
    assert record.tpot_ms == pytest.approx(100)
    assert record.itl_ms == pytest.approx([200, 400])
    assert record.e2e_ms == pytest.approx(1200)
    record.output_tokens = 1
    assert record.tpot_ms is None


def test_percentiles_lie_between_neighbours_in_proportion():
    assert percentile([10.0, 20.0, 30.0, 40.0], 50) == 25.0
    assert percentile([10.0, 20.0, 30.0, 40.0], 99) == pytest.approx(39.7)
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 99) == 0.0


@pytest.mark.parametrize("text", ["128", "uniform:64:512", "normal:256:64", "lognormal:256:0.8"])
def test_lengths_are_drawn_around_what_was_written(text: str):
    lengths, rng = Lengths.parse(text), random.Random(3)
    drawn = [lengths.draw(rng) for _ in range(4000)]
    assert min(drawn) >= 1
    middle = {"128": 128, "uniform:64:512": 288}.get(text, 256)
    assert statistics.median(drawn) == pytest.approx(middle, rel=0.06)


@pytest.mark.parametrize("text", ["", "0", "-4", "many", "uniform:5", "uniform:1.5:3", "normal:0:3", "zipf:3:4", "1e9"])
def test_lengths_that_mean_nothing_are_refused(text: str):
    with pytest.raises(ValueError, match="is no distribution of lengths"):
        Lengths.parse(text)
