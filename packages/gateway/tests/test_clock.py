"""A clock that was set is noticed, told of for a while, and counted."""

from deepseek_gateway.clock import TOLD_S, ClockWatch
from deepseek_gateway.testing.stack import Stack


class Clocks:
    """Wall clock and monotonic time that go as a test wants."""

    wall_s, monotonic_s = 1_800_000_000.0, 100.0

    def go(self, seconds: float, step_s: float = 0.0) -> None:
        self.monotonic_s += seconds
        self.wall_s += seconds + step_s


def test_a_step_either_way_is_counted_and_told_of_for_a_while() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall_s, lambda: clocks.monotonic_s)
    clocks.go(2)
    watch.look()
    assert (watch.num_steps, watch.fault) == (0, None)
    clocks.go(2, step_s=3600)
    watch.look()
    assert (watch.num_steps, watch.fault) == (1, "the clock was set by +3600.0 s")
    clocks.go(2, step_s=-3600)
    watch.look()
    assert (watch.num_steps, watch.fault) == (2, "the clock was set by -3600.0 s")
    clocks.go(TOLD_S)
    watch.look()
    assert (watch.num_steps, watch.fault) == (2, None)


def test_a_clock_that_is_kept_right_little_by_little_is_no_step() -> None:
    clocks = Clocks()
    watch = ClockWatch(lambda: clocks.wall_s, lambda: clocks.monotonic_s)
    for _ in range(10_000):
        clocks.go(2, step_s=0.5)
        watch.look()
    assert watch.num_steps == 0


async def test_ready_and_metrics_tell_of_it(stack: Stack) -> None:
    stack.gateway.clock._apart_s -= 3600
    stack.gateway.clock.look()
    told = (await stack.caller.get("/ready")).json
    assert told["faults"][0].startswith("the clock was set by +3600")
    assert b"deepseek_gateway_clock_steps 1.0" in (await stack.caller.get("/metrics")).body
