"""What many keys cost: the same load by as few of them, out of few and out of many; and a key's first request."""

from dataclasses import replace
from pathlib import Path

import uvloop

from deepseek_gateway.bench.load import Tally, closed_loop, percentile
from deepseek_gateway.bench.measures import Figures, Plan
from deepseek_gateway.bench.process import BenchError
from deepseek_gateway.bench.targets import LIMITS, Target, gateway_output, start_ours

CALLERS = 16
IN_TURN = 10
"""Keys that the steady load takes in turn, spread over all."""

STRANGERS = 10_000
"""Keys that the other load takes, each once: their limits are read anew, and so is what they spent of each budget."""


class KeyBench:
    """A state with so many keys, and a gateway on it that starts anew for each round."""

    def __init__(self, engine_url: str, folder: Path, number: int) -> None:
        state = str(folder / "state")
        gateway_output("migrate", "--state", state)
        made = gateway_output("key", "create", "--state", state, "--name", "bench", "--count", str(number), *LIMITS)
        self._keys = made.split()
        self._engine_url, self._folder, self._number = engine_url, folder, number
        self._known = self._keys[:: max(1, number // IN_TURN)][:IN_TURN]

    def measure(self, turn: int, plan: Plan) -> Figures:
        """Start a gateway, and load it; each turn has strangers of its own."""
        number = self._number
        target = start_ours(self._engine_url, self._folder, 1, tuple(self._known))
        assert target.child is not None
        try:
            _loaded(target, plan.seconds / 2)
            tally, cpu_us = _loaded(target, plan.seconds)
            figures = {
                f"keys_{number}_start_s": target.start_s[0],
                f"keys_{number}_cpu_us": cpu_us,
                f"keys_{number}_p50_ms": percentile(tally.total_ms, 50),
                f"keys_{number}_rss_mib": target.child.rss_mib(),
            }
            if number > STRANGERS:
                every = number // STRANGERS
                strangers = [key for key in self._keys[turn % every :: every] if key not in self._known]
                target.endpoint = replace(target.endpoint, keys=tuple(strangers))
                tally, figures[f"keys_{number}_first_cpu_us"] = _loaded(target, plan.seconds)
                if len(tally.answers) > len(strangers):
                    raise BenchError(f"{len(strangers)} keys are too few for a first request each")
            return figures
        finally:
            target.child.stop()


def _loaded(target: Target, seconds: float) -> tuple[Tally, float]:
    """A load of whole answers, and the CPU of one in microseconds."""
    before_s = target.cpu_s()
    tally: Tally = uvloop.run(closed_loop(target.endpoint, "bench", CALLERS, seconds, stream=False))
    return tally, (target.cpu_s() - before_s) * 1e6 / len(tally.answers)
