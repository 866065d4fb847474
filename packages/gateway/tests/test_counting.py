"""Counters of the event loop, beside the library's own: a scrape must not tell them apart."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from deepseek_gateway.counting import LoopCounter, LoopHistogram

BOUNDS = (0.005, 0.5, 1, 300)
VALUES = (0.0, 0.005, 0.006, 1, 299.9, 301)


def test_a_scrape_reads_as_that_of_the_librarys_counter_and_histogram() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    counter = Counter("seen", "Things", ["kind", "end"], registry=theirs)
    histogram = Histogram("took_seconds", "Times", ["kind"], buckets=BOUNDS, registry=theirs)
    own_counter = LoopCounter("seen", "Things", ("kind", "end"), ours)
    own_histogram = LoopHistogram("took_seconds", "Times", "kind", BOUNDS, ours)
    for value in VALUES:
        counter.labels("a", 'quo"ted').inc(value)
        own_counter.add(value, "a", 'quo"ted')
        histogram.labels("a").observe(value)
        own_histogram.observe(value, "a")
    expected = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert sorted(generate_latest(ours).splitlines()) == sorted(expected)


def test_series_of_what_is_gone_end() -> None:
    registry = CollectorRegistry()
    counter = LoopCounter("tries", "Tries", ("upstream", "outcome"), registry)
    counter.add(1, "old", "good")
    counter.add(2, "kept", "good")
    counter.forget("old")
    assert registry.get_sample_value("tries_total", {"upstream": "old", "outcome": "good"}) is None
    assert registry.get_sample_value("tries_total", {"upstream": "kept", "outcome": "good"}) == 2
