"""Limits of one process: the meters are its own, so nothing is asked of anybody but budgets, once a window."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.limiter import Crossing, Reservation, Shortage, Spent, refusal, used_up
from deepseek_gateway.limits.meters import MeterState, RequestState, SlotState, TokenState, WindowState
from deepseek_gateway.limits.rulebook import Meter, Plan
from deepseek_gateway.limits.rules import Amounts, Ask, Kind, LimitReached, LimitsUnavailable, Now, Standing, Unit
from deepseek_gateway.limits.windows import Calendar, Window

MAX_METERS = 200_000
"""Counters kept at a time; idle ones are dropped beyond it."""


def read_clocks() -> Now:
    """Both clocks, now."""
    return Now(time.monotonic(), time.time())


class LocalLimiter:
    """See `limits.limiter.Limiter`.

    Args:
        spent: what the ledger says about a budget.
        clocks: the time.
        starts_empty: buckets begin empty instead of full.
        running: how many requests that others let in run on a meter.
    """

    def __init__(
        self,
        spent: Spent | None = None,
        clocks: Callable[[], Now] = read_clocks,
        *,
        starts_empty: bool = False,
        running: Callable[[Meter], int] | None = None,
    ) -> None:
        self._spent = spent
        self._clocks = clocks
        self._starts_empty = starts_empty
        self._running = running
        self._states: dict[str, MeterState] = {}
        self._loading: dict[tuple[str, float], asyncio.Future[int]] = {}
        self._calendar = Calendar()

    @property
    def trouble(self) -> str | None:
        """A process can always ask itself."""
        return None

    async def start(self) -> None:
        """Nothing to do: budgets are read when they are first asked."""

    async def close(self) -> None:
        """Nothing to do: this process's reservations end with it."""

    async def settled(self, reservation: Reservation) -> None:
        """At once."""

    def standings(self, reservation: Reservation) -> tuple[Standing, ...]:
        """How the rules stand now."""
        now, meters, states = self._clocks(), reservation.plan.meters, reservation.states
        rooms = [state.room(meter.limit, now) for meter, state in zip(meters, states, strict=True)]
        return _standings(meters, states, rooms, now)

    async def admit(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in."""
        meters = plan.meters
        now = self._clocks()
        states: list[MeterState] = []
        for meter in meters:
            state = self._states.get(meter.counter)
            if state is None or (type(state) is WindowState and now.wall_s >= state.window.end):
                await self._open(meter, now)
                return await self.admit(request_id, plan, ask)
            states.append(state)
        # From here on nothing is awaited: one step.
        tokens, nano = ask.wanted
        least = _by_unit(*ask.least)
        shortages: list[Shortage] = []
        rooms: list[float] = []
        for meter, state in zip(meters, states, strict=True):
            room, unit = state.room(meter.limit, now), meter.unit
            rooms.append(room)
            if meter.is_soft:
                continue
            if room < least[unit]:
                shortages.append(_shortage(meter, state, least[unit], now))
            elif unit == "tokens" and tokens > room:
                tokens = math.floor(room)
            elif unit == "money" and nano > room:
                nano = math.floor(room)
        if shortages:
            error = refusal(shortages, ask)
            error.standings = _standings(meters, states, rooms, now)
            raise error
        reservation = Reservation(request_id, plan, tokens, nano, states)
        amounts = _by_unit(tokens, nano)
        for at, (meter, state) in enumerate(zip(meters, states, strict=True)):
            if not meter.is_held:
                continue
            amount = amounts[meter.unit]
            state.take(amount, meter.limit, now)
            rooms[at] -= amount
            if meter.is_soft and rooms[at] < 0:
                reservation.crossed.append(_crossing(meter, state, now))
        reservation.standings = _standings(meters, states, rooms, now)
        return reservation

    async def extend(self, reservation: Reservation, more: Amounts) -> Amounts:
        """Hold more."""
        now = self._clocks()
        pairs = list(zip(reservation.plan.meters, reservation.states, strict=True))
        tokens, nano = more.tokens, more.nano
        for meter, state in pairs:
            if meter.unit == "requests" or meter.is_soft:
                continue
            room = max(0, math.floor(state.room(meter.limit, now)))
            if meter.unit == "tokens":
                tokens = min(tokens, room)
            else:
                nano = min(nano, room)
        for meter, state in pairs:
            if meter.unit == "requests" or meter.is_soft:
                continue
            state.take(tokens if meter.unit == "tokens" else nano, meter.limit, now)
        reservation.tokens += tokens
        reservation.nano += nano
        return Amounts(tokens, nano)

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replace what was held by what was used."""
        if reservation.is_settled:
            return
        reservation.is_settled = True
        now = self._clocks()
        held, spent = _by_unit(reservation.tokens, reservation.nano), _by_unit(used.tokens, used.nano)
        for meter, state in zip(reservation.plan.meters, reservation.states, strict=True):
            unit = meter.unit
            if unit == "requests":
                state.give(1, 0, meter.limit, now)
            elif meter.is_held:
                state.give(held[unit], spent[unit], meter.limit, now)
            else:
                state.give(0, spent[unit], meter.limit, now)
                if state.room(meter.limit, now) < 0:
                    reservation.crossed.append(_crossing(meter, state, now))

    def reached(self, reservation: Reservation) -> LimitReached:
        """The refusal for a running request that cannot extend: of the rule that has the least."""
        now = self._clocks()
        hard = [
            (state.room(meter.limit, now), meter, state)
            for meter, state in zip(reservation.plan.meters, reservation.states, strict=True)
            if meter.unit != "requests" and not meter.is_soft
        ]
        _, meter, state = min(hard, key=lambda entry: entry[0])
        return used_up(meter.rule, state.window if isinstance(state, WindowState) else None)

    async def join(self, request_id: str, plan: Plan) -> Reservation:
        """A reservation that holds nothing yet, for a request that others let in."""
        for meter in plan.meters:
            if meter.counter not in self._states:
                await self._open(meter, self._clocks())
        return Reservation(request_id, plan, 0, 0, [self._states[meter.counter] for meter in plan.meters])

    def settle_recovered(self, rows: Sequence[LedgerRow]) -> None:
        """Nothing to do: what an earlier process held ended with it."""

    def state(self, counter: str) -> MeterState | None:
        """A counter's state, for tests."""
        return self._states.get(counter)

    async def _open(self, meter: Meter, now: Now) -> None:
        """Make a meter's state; a budget's is what the ledger says."""
        if len(self._states) >= MAX_METERS:
            self._drop_idle(now)
        period = meter.kind.period
        if period is None:
            self._states[meter.counter] = self._fresh(meter, now)
            return
        window = self._calendar.window(period, meter.rule.time_zone, now.wall_s)
        used = 0 if self._spent is None else await self._load(self._spent, meter, window)
        state = self._states.get(meter.counter)
        if not isinstance(state, WindowState) or state.window.end < window.end:  # else another caller was faster
            self._states[meter.counter] = WindowState(window, used)

    async def _load(self, spent: Spent, meter: Meter, window: Window) -> int:
        """The ledger's sum; all who wait for one budget wait for one look.

        Raises:
            LimitsUnavailable: the ledger cannot be read.
        """
        name = meter.counter, window.start
        loading = self._loading.get(name)
        if loading is None:
            loading = self._loading[name] = asyncio.ensure_future(spent(meter, window))
            loading.add_done_callback(
                lambda done: (self._loading.pop(name, None), done.cancelled() or done.exception())
            )
        try:
            return await asyncio.shield(loading)
        except Exception as error:
            raise LimitsUnavailable(meter.rule, f"what was spent of {meter.rule.kind} cannot be read now") from error

    def _fresh(self, meter: Meter, now: Now) -> MeterState:
        if meter.kind is Kind.CONCURRENT_REQUESTS:
            running = self._running
            return SlotState(0, None if running is None else lambda: running(meter))
        if meter.kind is Kind.TOKENS_PER_MINUTE:
            return TokenState(0.0 if self._starts_empty else float(meter.limit), now.monotonic_s)
        return RequestState(now.monotonic_s + 60 if self._starts_empty else float("-inf"))

    def _drop_idle(self, now: Now) -> None:
        for name in [name for name, state in self._states.items() if state.is_idle(now)]:
            del self._states[name]


def amount_of(meter: Meter, tokens: int, nano: int) -> int:
    """What a request with so many tokens counts on a meter."""
    return _by_unit(tokens, nano)[meter.unit]


def _by_unit(tokens: int, nano: int) -> dict[Unit, int]:
    """The same, for a meter of each unit."""
    return {"requests": 1, "tokens": tokens, "money": nano}


def _standings(meters: Sequence[Meter], states: list[MeterState], rooms: list[float], now: Now) -> tuple[Standing, ...]:
    return tuple(
        [
            Standing(meter.rule, max(0, math.floor(room)), state.reset_s(meter.limit, now))
            for meter, state, room in zip(meters, states, rooms, strict=True)
            if not meter.is_soft
        ]
    )


def _shortage(meter: Meter, state: MeterState, least: int, now: Now) -> Shortage:
    left = math.floor(state.room(meter.limit, now))
    window = state.window if isinstance(state, WindowState) else None
    return Shortage(meter.rule, least, left, state.wait_s(least, meter.limit, now), window)


def _crossing(meter: Meter, state: MeterState, now: Now) -> Crossing:
    taken = meter.limit - math.floor(state.room(meter.limit, now))
    return Crossing(meter, state.window if isinstance(state, WindowState) else None, taken)
