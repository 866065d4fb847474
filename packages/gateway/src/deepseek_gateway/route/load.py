"""How busy an engine is: what we sent it, and what it says of itself, which counts less the older it is."""

import re
from dataclasses import dataclass

HALF_LIFE_S = 2.0
"""After this long a report counts half: others' requests come and go."""

STALE_S = 10.0

CROWDED_CACHE = 0.9
"""From this share of the KV cache on an engine is about to preempt: it counts as up to twice as busy."""

_SAMPLE = re.compile(
    rb"^(?P<name>deepseek_engine_requests_running|deepseek_engine_requests_waiting|deepseek_engine_kv_blocks_used"
    rb"|deepseek_engine_kv_blocks_total|vllm:num_requests_running|vllm:num_requests_waiting|vllm:kv_cache_usage_perc"
    rb"|vllm:gpu_cache_usage_perc|sglang:num_running_reqs|sglang:num_queue_reqs|sglang:token_usage)"
    rb"(?:\{[^}\n]*\})?[ \t]+(?P<value>[-+.\deE]+)",
    re.MULTILINE,
)
_RUNNING = (b"deepseek_engine_requests_running", b"vllm:num_requests_running", b"sglang:num_running_reqs")
_WAITING = (b"deepseek_engine_requests_waiting", b"vllm:num_requests_waiting", b"sglang:num_queue_reqs")
_CACHE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What an engine said: sequences that run and wait there, and the share of its KV cache in use.

    `foreign` is how many of these are not ours, such as other gateways'. `at_s` is monotonic.
    """

    running: float
    waiting: float
    kv_use: float
    foreign: float
    at_s: float


def parse_load(text: bytes, ours: int, now_s: float) -> LoadReport | None:
    """Read Prometheus text of our engine, vLLM or SGLang; None when it has no figures.

    Args:
        text: the answer of /metrics.
        ours: requests of ours that were there.
        now_s: when.
    """
    values: dict[bytes, float] = {}
    for sample in _SAMPLE.finditer(text):
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        if 0 <= value < 1e9:
            name = sample["name"]
            values[name] = values.get(name, 0.0) + value  # one series for each rank or model
    running = next((values[name] for name in _RUNNING if name in values), None)
    if running is None:
        return None
    waiting = next((values[name] for name in _WAITING if name in values), 0.0)
    blocks = values.get(b"deepseek_engine_kv_blocks_total", 0.0)
    if blocks:
        kv_use = values.get(b"deepseek_engine_kv_blocks_used", 0.0) / blocks
    else:
        kv_use = next((values[name] for name in _CACHE if name in values), 0.0)
    return LoadReport(running, waiting, min(kv_use, 1.0), max(0.0, running + waiting - ours), now_s)


def load_of(in_flight: int, report: LoadReport | None, now_s: float) -> float:
    """Requests at an engine by the best knowledge. What waits there counts twice."""
    if report is None:
        return in_flight
    age_s = now_s - report.at_s
    if age_s > STALE_S:
        return in_flight
    trust = 0.5 ** (age_s / HALF_LIFE_S)
    load = in_flight + trust * (report.foreign + report.waiting)
    if report.kv_use > CROWDED_CACHE:
        load *= 1 + trust * (report.kv_use - CROWDED_CACHE) / (1 - CROWDED_CACHE)
    return load
