"""No order of admissions, extensions, settlements and pauses exceeds a limit, and every reservation returns."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_gateway.limits.limiter import Ask, LocalLimiter, Reservation
from deepseek_gateway.limits.meters import month_of
from deepseek_gateway.limits.rules import LimitReached, Limits, Now

START = 1795392000.0
limit = st.none() | st.integers(1, 60)


class LimiterMachine(RuleBasedStateMachine):
    """One key, and a history kept beside the limiter."""

    @initialize(
        requests=limit, tokens=limit, concurrent=st.none() | st.integers(1, 4), month=st.none() | st.integers(1, 300)
    )
    def begin(self, requests: int | None, tokens: int | None, concurrent: int | None, month: int | None) -> None:
        self.limits = Limits(requests, tokens, concurrent, month)
        self.limiter = LocalLimiter()
        self.seconds = 0.0
        self.running: list[Reservation] = []
        self.admitted_at: list[float] = []
        self.spent: list[tuple[str, int]] = []

    @property
    def now(self) -> Now:
        return Now(self.seconds, START + self.seconds)

    @rule(seconds=st.floats(0, 90) | st.just(9 * 86400.0))
    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    @rule(prompt=st.integers(0, 30), completion=st.integers(1, 30))
    def admit(self, prompt: int, completion: int) -> None:
        try:
            reservation = self.limiter.admit("k", self.limits, Ask(prompt, completion), self.now)
        except LimitReached:
            return
        assert reservation.held == prompt + completion
        self.running.append(reservation)
        self.admitted_at.append(self.seconds)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def extend(self, data: st.DataObject, tokens: int) -> None:
        reservation = data.draw(st.sampled_from(self.running))
        before = reservation.held
        granted = self.limiter.extend(reservation, tokens, self.now)
        assert 0 <= granted <= tokens
        assert reservation.held == before + granted

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(self.running))
        used = data.draw(st.integers(0, reservation.held))
        self.limiter.settle(reservation, used, self.now)
        self.running.remove(reservation)
        self.spent.append((reservation.month, used))

    @invariant()
    def concurrency_holds(self) -> None:
        meters = self.limiter.meters("k")
        assert meters.in_flight == len(self.running)
        assert self.limits.concurrent_requests is None or meters.in_flight <= self.limits.concurrent_requests

    @invariant()
    def no_window_has_more_requests_than_its_bucket_and_refill(self) -> None:
        rate = self.limits.requests_per_minute
        if rate is None:
            return
        for first, began in enumerate(self.admitted_at):
            for last in range(first, len(self.admitted_at)):
                allowed = rate + (self.admitted_at[last] - began) * rate / 60
                assert last - first + 1 <= allowed + 1e-6

    @invariant()
    def the_token_bucket_is_never_overdrawn(self) -> None:
        rate = self.limits.tokens_per_minute
        if rate is not None:
            assert -1e-6 <= self.limiter.meters("k").tokens.available(rate, self.seconds) <= rate

    @invariant()
    def the_month_is_never_overdrawn(self) -> None:
        month = month_of(self.now.wall_s)
        used = sum(tokens for spent_in, tokens in self.spent if spent_in == month)
        held = sum(reservation.held for reservation in self.running if reservation.month == month)
        meter = self.limiter.meters("k").month
        if meter.month == month:
            assert (meter.used, meter.held) == (used, held)
        assert self.limits.tokens_per_month is None or used + held <= self.limits.tokens_per_month

    def teardown(self) -> None:
        for reservation in getattr(self, "running", []):
            self.limiter.settle(reservation, 0, self.now)
        if hasattr(self, "limiter"):
            meters = self.limiter.meters("k")
            assert (meters.in_flight, meters.month.held) == (0, 0)


LimiterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLimiter = LimiterMachine.TestCase
