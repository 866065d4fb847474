"""What many keys cost: the same load with few keys and with many, each request with the next of them."""

from pathlib import Path

import uvloop

from deepseek_gateway.bench.load import Tally, closed_loop, percentile
from deepseek_gateway.bench.measures import Figures, Plan
from deepseek_gateway.bench.targets import LIMITS, gateway_output, start_ours

CALLERS = 16
SAMPLE = 5000
"""Keys that the load takes in turn, spread over all of them: more than a cache keeps for a moment."""


def measure_keys(engine_url: str, folder: Path, number: int, plan: Plan) -> Figures:
    """Make so many keys, start a gateway, and load it."""
    state = str(folder / "state")
    gateway_output("migrate", "--state", state)
    made = gateway_output("key", "create", "--state", state, "--name", "bench", "--count", str(number), *LIMITS)
    keys = made.split()
    target = start_ours(engine_url, folder, 1, tuple(keys[:: max(1, number // SAMPLE)]))
    assert target.child is not None
    try:
        uvloop.run(closed_loop(target.endpoint, "bench", CALLERS, plan.seconds / 2, stream=False))
        before_s = target.cpu_s()
        tally: Tally = uvloop.run(closed_loop(target.endpoint, "bench", CALLERS, plan.seconds, stream=False))
        used_s = target.cpu_s() - before_s
        return {
            f"keys_{number}_start_s": target.start_s[0],
            f"keys_{number}_cpu_us": used_s * 1e6 / len(tally.answers),
            f"keys_{number}_p50_ms": percentile(tally.total_ms, 50),
            f"keys_{number}_rss_mib": target.child.rss_mib(),
        }
    finally:
        target.child.stop()
