"""Limits that many gateways share, on Redis or Valkey. What holds while it is away is each rule's policy.

The server has rates and reservations; budgets are the ledger's, and rebuilt from it whenever the server has lost them.
Each of its memories has a name, the epoch: a gateway that meets another epoch puts back what its running requests hold,
and no budget admits anybody until all gateways had the time for that.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.limiter import Reservation, Spent, refusal, used_up
from deepseek_gateway.limits.local import read_clocks
from deepseek_gateway.limits.redis_link import RedisLink, RedisUnavailableError
from deepseek_gateway.limits.redis_node import DEFAULT_TIMES, Hold, RedisNode, RedisTimes, Settling
from deepseek_gateway.limits.redis_steps import Steps, amounts, rooms
from deepseek_gateway.limits.rulebook import Meter, Plan
from deepseek_gateway.limits.rules import Amounts, Ask, LimitReached, LimitsUnavailable, Now, Standing
from deepseek_gateway.limits.shares import Shares, unavailable
from deepseek_gateway.limits.windows import Calendar


class RedisLimiter:
    """See `limits.limiter.Limiter`.

    Args:
        link: the server.
        spent: what the ledger says about a budget.
        flush: brings this gateway's settled rows into the ledger.
        clocks: the time.
        times: how long things take.
        crossed: told of a settled request that went over soft limits, once the server has said so.
    """

    def __init__(
        self,
        link: RedisLink,
        spent: Spent,
        flush: Callable[[], Awaitable[None]],
        clocks: Callable[[], Now] = read_clocks,
        times: RedisTimes = DEFAULT_TIMES,
        crossed: Callable[[Reservation], None] = lambda _: None,
    ) -> None:
        self.link = link
        self._spent = spent
        self._clocks = clocks
        self._crossed = crossed
        self._calendar = Calendar()
        self._node = RedisNode(link, flush, clocks, times)
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_shared = 0
        self.num_denied = 0

    @property
    def trouble(self) -> str | None:
        """Why rules are not kept as written just now, or None."""
        if self.link.failure is None:
            return None
        if not self._node.num_nodes:
            return "Redis was never there: limited requests are refused"
        return f"Redis is away: rates are kept by shares of one in {self._node.num_nodes}, budgets are refused"

    @property
    def memory(self) -> str | None:
        """The name of the server's memory, which all gateways of this server share; None while it does not answer."""
        return None if self.link.failure is not None else self._node.epoch or None

    @property
    def num_settling(self) -> int:
        """Settlements that the server does not know yet."""
        return len(self._node.settling)

    async def start(self) -> None:
        """Meet the server, if it is there."""
        await self._node.start()

    async def close(self) -> None:
        """Tell the server what was settled, if it is there, and go."""
        await self._node.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.close()

    def settle_recovered(self, rows: Sequence[LedgerRow]) -> None:
        """Replace what requests of a process that died held by what its journal said. Those nobody knows are let be."""
        for row in rows:
            tag = row.org_id if row.org_id is not None else f"key:{row.key_id}"
            used = Amounts(row.prompt_tokens + row.completion_tokens, row.cost_nano)
            self._node.settling[row.request_id] = Settling(tag, used, 0.0)

    async def admit(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in."""
        if not plan.meters:
            return Reservation(request_id, plan, ask.wanted.tokens, ask.wanted.nano, ())
        now = self._clocks()
        steps = Steps.of(request_id, plan, self._calendar, now.wall_s)
        try:
            reply = await self._admit(steps, ask)
        except (RedisUnavailableError, asyncio.CancelledError) as error:
            # It may have been done all the same: then this undoes it, when it cannot come any more.
            not_before_s = self._clocks().monotonic_s + 2 * self.link.timeout_s
            self._node.put(request_id, Settling(plan.tag, Amounts(), not_before_s))
            if isinstance(error, asyncio.CancelledError):
                raise
            return await self._admit_without(request_id, plan, ask)
        left = rooms(reply)
        standings = steps.standings(left, now.wall_s)
        if reply[0] == "no":
            error = refusal(steps.shortages(left, ask), ask)
            error.standings = standings
            raise error
        held, crossed = amounts(reply), steps.crossings(left, is_settled=False)
        hold = self._node.live[request_id] = Hold(steps, held.tokens, held.nano, left)
        return Reservation(request_id, plan, held.tokens, held.nano, hold, standings, crossed)

    async def extend(self, reservation: Reservation, more: Amounts) -> Amounts:
        """Hold more."""
        hold = reservation.states
        if not isinstance(hold, Hold):
            if reservation.owner is not None:
                return await reservation.owner.extend(reservation, more)
            reservation.tokens += more.tokens  # nothing limits it
            reservation.nano += more.nano
            return more
        steps = hold.steps
        tail = [more.tokens, more.nano, *steps.meters()]
        try:
            reply = await self._node.run_leased("extend", steps, tail)
            if reply[0] == "unknown":  # the lease ran out while the server was not to be reached
                await self._node.register(reservation.request_id, hold)
                reply = await self._node.run_leased("extend", steps, tail)
            if reply[0] != "ok":
                raise RedisUnavailableError(reply[0])  # noqa: TRY301  the same way out
        except RedisUnavailableError:
            got = await self._extend_without(reservation.request_id, hold, more)
        else:
            got = amounts(reply)
            hold.rooms, hold.unavailable = rooms(reply), None
            hold.tokens += got.tokens
            hold.nano += got.nano
        reservation.tokens += got.tokens
        reservation.nano += got.nano
        return got

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replace what was held by what was used: at once here, and at the server as soon as it answers."""
        hold = reservation.states
        if not isinstance(hold, Hold):
            if reservation.owner is not None:
                reservation.owner.settle(reservation, used)
            return
        if reservation.is_settled:
            return
        reservation.is_settled = True
        if hold.beside is not None:
            hold.beside.owner.settle(hold.beside, Amounts(max(0, used.tokens - hold.tokens)))
            used = Amounts(min(used.tokens, hold.tokens), used.nano)
        told = partial(self._told, reservation, hold.steps)
        self._node.put(reservation.request_id, Settling(reservation.plan.tag, used, 0.0, told))
        self._spawn(self._node.deliver(reservation.request_id))

    async def settled(self, reservation: Reservation) -> None:
        """Wait until the server knows, for as long as it takes to answer."""
        settling = self._node.settling.get(reservation.request_id)
        if settling is not None and not self.link.is_open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.link.timeout_s):
                    await asyncio.shield(settling.done)

    def standings(self, reservation: Reservation) -> tuple[Standing, ...]:
        """As the server said at the settlement, or at the admission while it is away."""
        return reservation.standings

    def reached(self, reservation: Reservation) -> LimitReached | LimitsUnavailable:
        """The refusal for a running request that cannot extend: of the rule that has the least."""
        hold = reservation.states
        if not isinstance(hold, Hold):
            return reservation.owner.reached(reservation)
        if hold.unavailable is not None:
            return unavailable(hold.unavailable)
        hard = [
            (room, meter.rule, window)
            for meter, window, room in zip(reservation.plan.meters, hold.steps.windows, hold.rooms, strict=True)
            if meter.unit != "requests" and not meter.is_soft
        ]
        _, rule, window = min(hard, key=lambda entry: entry[0])
        return used_up(rule, window)

    def _told(self, reservation: Reservation, steps: Steps, left: list[float]) -> None:
        """The server has settled a request, and this is what it left of its rules."""
        reservation.standings = steps.standings(left, self._clocks().wall_s)
        reservation.crossed += steps.crossings(left, is_settled=True)
        if reservation.crossed:
            self._crossed(reservation)

    async def _admit(self, steps: Steps, ask: Ask) -> list[str]:
        """Ask the server until it decides: budgets that it does not know are read from the ledger.

        Raises:
            RedisUnavailableError: it does not answer in time.
            LimitsUnavailable: the ledger cannot be read.
        """
        plan, inits = steps.plan, [""] * len(steps.keys)
        sizes = [ask.wanted.tokens, ask.least.tokens, ask.wanted.nano, ask.least.nano]
        for _ in range(4):
            reply = await self._node.run_leased("admit", steps, [*sizes, *steps.meters(inits)])
            if reply[0] == "wait":
                await asyncio.sleep(int(reply[1]) / 1e6)
            elif reply[0] == "load":
                for index in map(int, reply[1:]):
                    inits[index - 1] = str(await self._load(plan.meters[index - 1], steps, index - 1))
            elif reply[0] in {"ok", "no"}:
                return reply
        raise RedisUnavailableError("it does not come to a decision")

    async def _load(self, meter: Meter, steps: Steps, index: int) -> int:
        window = steps.windows[index]
        assert window is not None
        try:
            return await self._spent(meter, window)
        except Exception as error:
            raise LimitsUnavailable(meter.rule, f"what was spent of {meter.rule.kind} cannot be read now") from error

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _admit_without(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in by this gateway's share, if the rules' policies allow that."""
        try:
            reservation = await self._node.shares.admit(request_id, plan, ask)
        except LimitsUnavailable:
            self.num_denied += 1
            raise
        self.num_shared += 1
        return reservation

    async def _extend_without(self, request_id: str, hold: Hold, more: Amounts) -> Amounts:
        try:
            if hold.beside is None:
                hold.beside = await self._node.shares.join(request_id, hold.steps.plan)
        except LimitsUnavailable as error:
            hold.unavailable = error.rule
            return Amounts()
        shares: Shares = hold.beside.owner
        got = await shares.extend(hold.beside, Amounts(more.tokens))
        hold.rooms = [float(got.tokens)] * len(hold.rooms)
        return got
