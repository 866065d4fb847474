"""What it costs to choose an engine: `python packages/gateway/benchmarks/choosing.py`.

Prints one line of JSON: microseconds a choice with 8 engines (best of several rounds), with and without affinity, whose
key is computed once a request. The goal is less than 20.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from deepseek_gateway.metrics import GatewayMetrics
from deepseek_gateway.policy.snapshot import compile_snapshot
from deepseek_gateway.route.affinity import affinity_key
from deepseek_gateway.route.load import LoadReport
from deepseek_gateway.settings import Settings
from deepseek_gateway.upstream.pool import RouteAsk, UpstreamPool
from deepseek_gateway.upstream.upstream import Upstream

ENGINES = 8
ROUNDS = 7
CHOICES = 5000


async def measure() -> dict[str, float]:
    """Times of one pool."""
    upstreams = [
        {"name": f"gpu{number}", "url": f"http://127.0.0.1:{9000 + number}", "models": ["m"]}
        for number in range(ENGINES)
    ]
    settings = Settings.model_validate({"state_dir": Path("/tmp"), "upstreams": upstreams})  # noqa: S108  unused
    snapshot = compile_snapshot(settings)
    pool = UpstreamPool(snapshot, GatewayMetrics().routing)
    pool.upstreams = [Upstream.connect(plan) for plan in snapshot.upstreams]
    for at, upstream in enumerate(pool.upstreams):
        upstream.in_flight = at + 20
        upstream.report = LoadReport(30 + at, 2, 0.95, 10, pool.now())
    pool.models_changed()
    body = {"messages": [{"role": "system", "content": "s" * 1500}, {"role": "user", "content": "u" * 1500}]}
    plain = RouteAsk("m")
    tied = RouteAsk("m", affinity=affinity_key(body, "key", None))
    times = {"two_choices_us": _best(pool, plain), "affinity_us": _best(pool, tied)}
    begin_s = time.process_time()
    for _ in range(CHOICES):
        affinity_key(body, "key", None)
    times["affinity_key_us"] = (time.process_time() - begin_s) / CHOICES * 1e6
    await pool.close()
    return {name: round(value, 2) for name, value in times.items()}


def _best(pool: UpstreamPool, ask: RouteAsk) -> float:
    best_s = float("inf")
    for _ in range(ROUNDS):
        begin_s = time.process_time()
        for _ in range(CHOICES):
            placement = pool.place(ask)
            assert placement is not None
            pool.release(placement)
        best_s = min(best_s, time.process_time() - begin_s)
    return best_s / CHOICES * 1e6


if __name__ == "__main__":
    times = asyncio.run(measure())
    sys.stdout.write(json.dumps({"engines": ENGINES, **times, "goal_us": 20}) + "\n")
