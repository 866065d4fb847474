"""No order of admissions, extensions, settlements and pauses exceeds a limit or refuses what fits, and all returns.

Redis runs as it is, with a clock that the test sets; it may lose its memory at any point.
"""

import asyncio
import contextlib
import time
from typing import ClassVar

import pytest
import redis
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek_gateway.limits.limiter import Limiter
from deepseek_gateway.limits.local import LocalLimiter, amount_of
from deepseek_gateway.limits.redis_limiter import RedisLimiter
from deepseek_gateway.limits.redis_node import RedisTimes
from deepseek_gateway.limits.rulebook import Meter, Rulebook
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, LimitReached, LimitRule, Limits, Now, Subject
from deepseek_gateway.limits.windows import Window
from deepseek_gateway.testing.limit_model import Life, LimitModel
from deepseek_gateway.testing.redis_clock import ClockedLink
from deepseek_gateway.testing.redis_server import RedisServer, redis_program, redis_server

START = time.time() // 86400 * 86400
"""Today: Redis forgets windows by its own clock."""

NANO_PER_TOKEN = 3
SUBJECTS = (
    Subject("k1", "acme", "red", "ann", "m1"),
    Subject("k1", "acme", "red", "ann", "m2"),
    Subject("k2", "acme", None, "bob", "m1"),
    Subject("k3", None, None, None, "m1"),
)
SCOPES = (
    {"org_id": "acme"}, {"team_id": "red"}, {"user_id": "ann"}, {"user_id": "*"}, {"key_id": "k1"}, {"key_id": "*"},
    {"model": "m1"}, {"model": "m*"}, {"key_id": "k1", "model": "m2"}, {"org_id": "acme", "model": "*"}, {},
)  # fmt: skip
SIZES = {
    Kind.REQUESTS_PER_MINUTE: 12, Kind.TOKENS_PER_MINUTE: 120, Kind.CONCURRENT_REQUESTS: 4, Kind.TOKENS_PER_DAY: 200,
    Kind.TOKENS_PER_MONTH: 400, Kind.MONEY_PER_DAY: 600, Kind.MONEY_PER_MONTH: 1200,
}  # fmt: skip
CLOSE = 1e-3
"""Of a token or a request: what rounding may decide either way."""


@st.composite
def limit_rules(draw: st.DrawFn) -> list[LimitRule]:
    rules = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(list(SIZES)))
        size = draw(st.integers(1, SIZES[kind]))
        zone = draw(st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York"]))
        scope, soft = draw(st.sampled_from(SCOPES)), draw(st.integers(0, 5)) == 0
        rules.append(LimitRule(f"r{number}", kind, size, **scope, time_zone=zone, soft=soft))
    return rules


class LimiterMachine(RuleBasedStateMachine):
    """A limiter, and a model of its whole history beside it."""

    lost = False

    def make(self) -> Limiter:
        return LocalLimiter(clocks=lambda: Now(self.seconds, START + self.seconds))

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    @initialize(
        rules=limit_rules(), credits=st.dictionaries(st.sampled_from(["org:acme", "key:k3"]), st.integers(0, 900))
    )
    def begin(self, rules: list[LimitRule], credits: dict[str, int]) -> None:  # noqa: A002
        self.seconds = 0.0
        self.runner = asyncio.Runner()
        self.book = Rulebook(rules, credits)
        self.limiter = self.make()
        self.model = LimitModel(START)
        self.count = 0

    @property
    def running(self) -> list[Life]:
        return [life for life in self.model.lives if life.used is None]

    @rule(seconds=st.floats(0, 90) | st.sampled_from([3600.0, 86400.0, 9 * 86400.0]))
    def wait(self, seconds: float) -> None:
        self.advance(seconds)

    @rule(
        subject=st.sampled_from(SUBJECTS),
        limits=st.sampled_from([Limits(), Limits(requests_per_minute=5), Limits(tokens_per_month=150)]),
        prompt=st.integers(0, 30),
        wanted=st.integers(1, 30),
        data=st.data(),
    )
    def admit(self, subject: Subject, limits: Limits, prompt: int, wanted: int, data: st.DataObject) -> None:
        least = data.draw(st.integers(1, wanted))
        plan = self.book.plan(subject, limits)
        sizes = [Amounts(prompt + tokens, (prompt + tokens) * NANO_PER_TOKEN) for tokens in (wanted, least)]
        rooms = [(meter, self.model.room(meter, self.seconds)) for meter in plan.meters]
        hard = [
            (room, amount_of(meter, sizes[1].tokens, sizes[1].nano)) for meter, room in rooms if not meter.rule.soft
        ]
        self.count += 1
        try:
            asked = Ask(prompt, wanted, *sizes)
            reservation = self.runner.run(self.limiter.admit(f"q{self.count}", plan, asked))
        except LimitReached:
            assert self.lost or any(room < needed + CLOSE for room, needed in hard), "refused what fits"
            return
        assert all(room > needed - CLOSE for room, needed in hard), "let in what does not fit"
        for meter, room in rooms:
            if not meter.rule.soft:
                assert amount_of(meter, reservation.tokens, reservation.nano) <= room + CLOSE
        crossed = {crossing.meter.counter for crossing in reservation.crossed}
        for meter, room in rooms:
            left = room - amount_of(meter, reservation.tokens, reservation.nano)
            if abs(left) > CLOSE and not self.lost:
                assert (meter.counter in crossed) == (meter.rule.soft and meter.unit == "requests" and left < 0)
        reservation.crossed.clear()
        for standing in reservation.standings:
            assert standing.remaining >= 0
        held = Amounts(reservation.tokens, reservation.nano)
        self.model.lives.append(Life(reservation, self.seconds, [(self.seconds, held)]))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def extend(self, data: st.DataObject, tokens: int) -> None:
        life = data.draw(st.sampled_from(self.running))
        more = Amounts(tokens, tokens * NANO_PER_TOKEN)
        before = Amounts(life.reservation.tokens, life.reservation.nano)
        got = self.runner.run(self.limiter.extend(life.reservation, more))
        assert 0 <= got.tokens <= more.tokens
        assert 0 <= got.nano <= more.nano
        assert (life.reservation.tokens, life.reservation.nano) == (before.tokens + got.tokens, before.nano + got.nano)
        life.holds.append((self.seconds, got))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        life = data.draw(st.sampled_from(self.running))
        held = life.held
        tokens = data.draw(st.integers(0, min(held.tokens, held.nano // NANO_PER_TOKEN)))
        used = Amounts(tokens, tokens * NANO_PER_TOKEN)
        self.runner.run(self.end(life, used))

    async def end(self, life: Life, used: Amounts) -> None:
        self.limiter.settle(life.reservation, used)
        await self.limiter.settled(life.reservation)
        life.used, life.settled_s = used, self.seconds
        crossed = {crossing.meter.counter for crossing in life.reservation.crossed}
        for meter in life.reservation.plan.meters:
            # A window that ended meanwhile is told of too; the model knows only the one of now.
            left = self.model.room(meter, self.seconds)
            is_of_now = meter.kind.period is None or self.model.is_in_window(life, meter, self.seconds)
            if meter.is_held or not is_of_now:
                assert meter.counter not in crossed or not is_of_now
            elif abs(left) > CLOSE and not self.lost:
                assert (meter.counter in crossed) == (left < 0)

    @invariant()
    def no_hard_limit_is_exceeded(self) -> None:
        if not hasattr(self, "book"):
            return
        for subject in SUBJECTS:
            for meter in self.book.plan(subject, Limits()).meters:
                if not meter.rule.soft:
                    assert self.model.room(meter, self.seconds) >= -CLOSE

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            for life in self.running:
                self.runner.run(self.end(life, Amounts()))
            self.check_that_nothing_is_held()
        finally:
            self.runner.run(self.limiter.close())
            self.runner.close()

    def check_that_nothing_is_held(self) -> None:
        for life in self.model.lives:
            for meter, state in zip(life.reservation.plan.meters, life.reservation.states, strict=True):
                assert getattr(state, "held", 0) == 0, meter.counter
                assert getattr(state, "running", 0) == 0, meter.counter


class RedisLimiterMachine(LimiterMachine):
    """The same on Redis."""

    server: ClassVar[RedisServer]

    def make(self) -> Limiter:
        self.server.flush()
        self.link = ClockedLink(self.server, START)
        times = RedisTimes(lease_s=1e9, settling_s=0.0)
        return RedisLimiter(self.link, self.spent, self.flush, self.link.clocks, times)

    async def spent(self, meter: Meter, window: Window) -> int:
        lives = [life for life in self.model.lives if life.used is not None and life.meter(meter.counter) is not None]
        mine = [life for life in lives if window.start <= START + life.admitted_s < window.end]
        return sum(amount_of(meter, life.used.tokens, life.used.nano) for life in mine)

    async def flush(self) -> None:
        """The model is the ledger, and always up to date."""

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self.link.advance(seconds)

    @rule(chance=st.integers(0, 3))
    def lose_memory(self, chance: int) -> None:
        if chance == 0:
            self.server.flush()
            self.link.advance(0.0)
            self.lost = True

    def check_that_nothing_is_held(self) -> None:
        with redis.from_url(self.server.url, decode_responses=True) as client:
            keys = list(client.scan_iter("dsg:*"))
        assert not [key for key in keys if ":r:" in key or ":o:" in key or key.endswith(":leases")]
        with redis.from_url(self.server.url, decode_responses=True) as client:
            for key in keys:
                if client.type(key) == "hash":
                    assert client.hget(key, "h") in {None, "0"}, key
        for life in self.model.lives:
            slots = [meter for meter in life.reservation.plan.meters if meter.kind is Kind.CONCURRENT_REQUESTS]
            assert not [key for key in keys for meter in slots if key.endswith(f"m:{meter.counter}")]


class TestRedisLimiter(RedisLimiterMachine.TestCase):
    settings = settings(max_examples=20, stateful_step_count=25, deadline=None, phases=(Phase.explicit, Phase.generate))

    @classmethod
    def setUpClass(cls) -> None:
        if redis_program() is None:
            pytest.skip("no Redis is installed")
        cls.context = contextlib.ExitStack()
        RedisLimiterMachine.server = cls.context.enter_context(redis_server())

    @classmethod
    def tearDownClass(cls) -> None:
        cls.context.close()


LimiterMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, phases=(Phase.explicit, Phase.generate)
)
TestLocalLimiter = LimiterMachine.TestCase
