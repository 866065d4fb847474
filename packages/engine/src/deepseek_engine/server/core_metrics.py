"""What the core says of itself, as metrics: read when somebody asks, so that a step pays nothing for them.

Stats come with every step; what changes slowly comes with the heartbeat, so it may be a second old.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deepseek_engine.core_watch import CoreVitals
from deepseek_engine.messages import STEP_SECONDS_BUCKETS, EngineStats, StepTotals

_PREFIX: Final = "deepseek_engine_"
_BUCKET_LABELS: Final = (*map(str, STEP_SECONDS_BUCKETS), "+Inf")


class CoreCollector(Collector):
    """Gives the metrics at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats], vitals: Callable[[], CoreVitals]) -> None:
        self._stats = stats
        self._vitals = vitals

    def collect(self) -> Iterator[Metric]:
        """Prometheus: every family with its samples."""
        vitals = self._vitals()
        yield from _of_stats(self._stats())
        yield from _of_vitals(vitals)
        yield from _of_steps(vitals.heartbeat.steps)


def _of_stats(stats: EngineStats) -> Iterator[Metric]:
    num_used = stats.num_blocks - stats.num_free_blocks
    yield _gauge("requests_running", "Sequences in the batch", stats.num_running)
    yield _gauge("requests_waiting", "Sequences waiting for a place", stats.num_waiting)
    yield _gauge("tokens_waiting", "Tokens of the sequences that wait", stats.num_waiting_tokens)
    yield _gauge("kv_blocks_used", "KV-cache blocks that hold a running sequence", num_used)
    yield _gauge("kv_blocks_total", "KV-cache blocks", stats.num_blocks)
    yield _gauge("step_token_budget", "Tokens in one step at most; lower after memory ran out", stats.max_step_tokens)
    yield _gauge("adapters_resident", "LoRA adapters in memory", stats.num_adapters)
    yield _counter("prefix_query_tokens", "Prompt tokens looked up in the prefix cache", stats.num_prefix_queries)
    yield _counter("prefix_hit_tokens", "Prompt tokens found in the prefix cache", stats.num_prefix_hits)
    yield _counter("preemptions", "Sequences put back to make room", stats.num_preemptions)
    yield _counter("steps", "Steps of the engine", stats.num_steps)
    yield _counter("overlapped_steps", "Steps launched while the one before was under way", stats.num_overlapped_steps)
    waits = CounterMetricFamily(f"{_PREFIX}sync_points", "Steps that could not be, by reason", labels=("reason",))
    for reason, number in stats.sync_points.items():
        waits.add_metric((reason,), number)
    yield waits
    yield _counter("failed_steps", "Steps of which something could not be computed", stats.num_failed_steps)
    yield _counter("oom_events", "Steps that memory did not suffice for, made smaller", stats.num_oom_events)
    yield _counter("spec_draft_tokens", "Guessed tokens that were verified", stats.num_draft_tokens)
    yield _counter("spec_accepted_tokens", "Guessed tokens that were right", stats.num_accepted_tokens)
    yield _counter("spec_off_steps", "Decoding steps whose guesses would not have paid", stats.num_off_steps)
    yield _gauge("spec_tokens_per_sequence", "Guesses that a sequence may have now; 0 is off", stats.num_guesses)


def _of_vitals(vitals: CoreVitals) -> Iterator[Metric]:
    beat = vitals.heartbeat
    yield _gauge("core_silence_seconds", "Since anything was heard from the engine core", vitals.silence_s)
    yield _gauge("core_step_seconds", "How long the step under way has lasted, if it is a long one", beat.step_s)
    yield _gauge("core_healthy", "0 while the core is gone or silent, or a step hangs, else 1", vitals.trouble is None)
    yield _gauge("core_resident_memory_bytes", "Memory of the core process", beat.rss_bytes)
    yield _counter("core_cpu_seconds", "Processor time of the core process", beat.cpu_s)
    yield _counter("core_dumps", "Times that the core wrote its state to the log", beat.num_dumps)
    yield SummaryMetricFamily(
        f"{_PREFIX}grammar_compile_seconds",
        "Compiling grammars for answers",
        count_value=beat.grammars.num_compiled,
        sum_value=beat.grammars.compile_s,
    )


def _of_steps(steps: StepTotals) -> Iterator[Metric]:
    phases = CounterMetricFamily(f"{_PREFIX}step_phase_seconds", "Time of all steps by phase", labels=("phase",))
    for phase, seconds in steps.phase_seconds.items():
        phases.add_metric((phase,), seconds)
    times = HistogramMetricFamily(f"{_PREFIX}step_seconds", "Steps by how long they take", labels=("kind",))
    sequences = CounterMetricFamily(f"{_PREFIX}step_sequences", "Sequences in all steps", labels=("kind",))
    tokens = CounterMetricFamily(f"{_PREFIX}step_tokens", "Tokens computed in all steps", labels=("kind",))
    for kind, totals in steps.kinds.items():
        buckets = list(zip(_BUCKET_LABELS, map(float, accumulate(totals.num_steps_in)), strict=True))
        times.add_metric((kind,), buckets, totals.seconds)
        sequences.add_metric((kind,), totals.num_sequences)
        tokens.add_metric((kind,), totals.num_tokens)
    yield from (phases, times, sequences, tokens)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, documentation, value=value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, documentation, value=value)
