"""Limits that many gateways share, on Redis or Valkey. What holds while it is away is each rule's policy.

The server has rates and reservations; budgets are the ledger's, and rebuilt from it whenever the server has lost them.
Each of its memories has a name, the epoch: a gateway that meets another epoch puts back what its running requests hold,
and no budget admits anybody until all gateways had the time for that.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.limits.limiter import Reservation, Spent, refusal, used_up
from deepseek_gateway.limits.local import read_clocks
from deepseek_gateway.limits.redis_link import RedisLink, RedisUnavailableError
from deepseek_gateway.limits.redis_steps import GATEWAYS, Steps, amounts, prefix_of, rooms
from deepseek_gateway.limits.rulebook import Meter, Plan
from deepseek_gateway.limits.rules import Amounts, Ask, LimitReached, LimitRule, LimitsUnavailable, Now
from deepseek_gateway.limits.shares import Shares, unavailable
from deepseek_gateway.limits.windows import Calendar

logger = logging.getLogger(__name__)

MAX_WAITING = 100_000
"""Settlements that wait for a server that is away. Beyond it the leases end them, at the most that they can be."""


@dataclass(frozen=True, slots=True)
class RedisTimes:
    """How long things take, in seconds.

    Attributes:
        beat_s: between two signs of life; a lost memory is noticed within one.
        lease_s: that a request's hold outlives its gateway.
        settling_s: that a new memory waits for all gateways before budgets admit.
    """

    beat_s: float = 0.5
    lease_s: float = 15.0
    settling_s: float = 1.5


@dataclass(slots=True)
class Hold:
    """A request's part in the server; `beside` is what it got of this gateway's share while the server was away."""

    steps: Steps
    tokens: int
    nano: int
    rooms: list[float]
    beside: Reservation | None = None
    unavailable: LimitRule | None = None


@dataclass(slots=True)
class Settling:
    """A settlement on its way to the server."""

    tag: str
    used: Amounts
    not_before_s: float
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RedisLimiter:
    """See `limits.limiter.Limiter`.

    Args:
        link: the server.
        spent: what the ledger says about a budget.
        flush: brings this gateway's settled rows into the ledger.
        clocks: the time.
        times: how long things take.
    """

    def __init__(
        self,
        link: RedisLink,
        spent: Spent,
        flush: Callable[[], Awaitable[None]],
        clocks: Callable[[], Now] = read_clocks,
        times: RedisTimes = RedisTimes(),
    ) -> None:
        self.link = link
        self._spent = spent
        self._flush = flush
        self._clocks = clocks
        self._times = times
        self._calendar = Calendar()
        self._node = secrets.token_hex(8)
        self._epoch = ""
        self._offset_us = 0.0
        self._nodes = 0
        self._beating = asyncio.Lock()
        self._live: dict[str, Hold] = {}
        self._settling: dict[str, Settling] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._beater: asyncio.Task[None] | None = None
        self._shares = Shares(clocks, 0, self._running)
        self._was_down = False
        self._renewed_s = 0.0
        self.num_shared = 0
        self.num_denied = 0

    @property
    def trouble(self) -> str | None:
        """Why rules are not kept as written just now, or None."""
        if self.link.failure is None:
            return None
        if not self._nodes:
            return "Redis was never there: limited requests are refused"
        return f"Redis is away: rates are kept by shares of one in {self._nodes}, budgets are refused"

    @property
    def num_settling(self) -> int:
        """Settlements that the server does not know yet."""
        return len(self._settling)

    async def start(self) -> None:
        """Meet the server, if it is there."""
        if await self.link.warm():
            with contextlib.suppress(RedisUnavailableError):
                await self._beat()
        self._beater = asyncio.create_task(self._beat_forever())

    async def close(self) -> None:
        """Tell the server what was settled, if it is there, and go."""
        if self._beater is not None:
            self._beater.cancel()
            await asyncio.gather(self._beater, return_exceptions=True)
        for settling in self._settling.values():
            settling.not_before_s = 0.0
        with contextlib.suppress(RedisUnavailableError):
            await self._deliver_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.close()

    def settle_recovered(self, rows: Sequence[LedgerRow]) -> None:
        """Replace what requests of a process that died held by what its journal said. Those nobody knows are let be."""
        for row in rows:
            tag = row.org_id if row.org_id is not None else f"key:{row.key_id}"
            used = Amounts(row.prompt_tokens + row.completion_tokens, row.cost_nano)
            self._settling[row.request_id] = Settling(tag, used, 0.0)

    async def admit(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in."""
        if not plan.meters:
            return Reservation(request_id, plan, ask.wanted.tokens, ask.wanted.nano, ())
        now = self._clocks()
        steps = Steps.of(request_id, plan, self._calendar, now.wall_s)
        try:
            reply = await self._admit(steps, ask)
        except RedisUnavailableError:
            # It may have been done all the same: then this undoes it, when it cannot come any more.
            not_before_s = self._clocks().monotonic_s + 2 * self.link.timeout_s
            self._put(request_id, Settling(plan.tag, Amounts(), not_before_s))
            return await self._admit_without(request_id, plan, ask)
        left = rooms(reply)
        standings = steps.standings(left, now.wall_s)
        if reply[0] == "no":
            error = refusal(steps.shortages(left, ask), ask)
            error.standings = standings
            raise error
        held = amounts(reply)
        hold = self._live[request_id] = Hold(steps, held.tokens, held.nano, left)
        return Reservation(request_id, plan, held.tokens, held.nano, hold, standings, steps.crossings(left))

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
        tail = [more.tokens, more.nano, *steps.meters(soft=True)]
        try:
            reply = await self._run_leased("extend", steps, tail)
            if reply[0] == "unknown":  # the lease ran out while the server was not to be reached
                await self._register(reservation.request_id, hold)
                reply = await self._run_leased("extend", steps, tail)
            if reply[0] != "ok":
                raise RedisUnavailableError(reply[0])  # noqa: TRY301  the same way out
        except RedisUnavailableError:
            got = await self._extend_without(reservation.request_id, hold, more)
        else:
            got = amounts(reply)
            hold.rooms, hold.unavailable = rooms(reply), None
            hold.tokens += got.tokens
            hold.nano += got.nano
            reservation.crossed += steps.crossings(hold.rooms)
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
            used = replace(used, tokens=min(used.tokens, hold.tokens))
        self._put(reservation.request_id, Settling(reservation.plan.tag, used, 0.0))
        self._spawn(self._deliver(reservation.request_id))

    async def settled(self, reservation: Reservation) -> None:
        """Wait until the server knows, for as long as it takes to answer."""
        settling = self._settling.get(reservation.request_id)
        if settling is not None and not self.link.is_open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.link.timeout_s):
                    await asyncio.shield(settling.done)

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

    async def _admit(self, steps: Steps, ask: Ask) -> list[str]:
        """Ask the server until it decides: budgets that it does not know are read from the ledger.

        Raises:
            RedisUnavailableError: it does not answer in time.
            LimitsUnavailable: the ledger cannot be read.
        """
        plan, inits = steps.plan, [""] * len(steps.keys)
        sizes = [ask.wanted.tokens, ask.least.tokens, ask.wanted.nano, ask.least.nano]
        for _ in range(4):
            reply = await self._run_leased("admit", steps, [*sizes, *steps.meters(soft=True, inits=inits)])
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

    async def _run_leased(self, script: str, steps: Steps, tail: Sequence[str | int]) -> list[str]:
        """Run `admit` or `extend`: with a lease, and a deadline after which it must not be done any more."""
        keys = [*steps.head, *steps.keys]
        for _ in range(2):
            deadline_us = (self._clocks().monotonic_s + self.link.timeout_s) * 1e6 + self._offset_us
            lease = [steps.request_id, int(self._times.lease_s * 1e6), f"{deadline_us:.0f}"]
            reply = await self._run(script, keys, [*lease, *tail])
            if reply[0] != "late":
                return reply
            await self._beat()  # somebody set a clock
        raise RedisUnavailableError("too late")

    async def _run(self, script: str, keys: Sequence[str], tail: Sequence[str | int]) -> list[str]:
        """Run a step under the epoch; when the server has another, learn it first."""
        reply = await self.link.run(script, keys, [self._epoch, 0, *tail])
        if reply[0] == "epoch":
            await self._beat()
            reply = await self.link.run(script, keys, [self._epoch, 1, *tail])
        return reply

    async def _beat(self, *, is_probe: bool = False) -> None:
        """Learn the server's clock and epoch. In a new one, put back what runs."""
        async with self._beating:
            began_us = self._clocks().monotonic_s * 1e6
            now, epoch, nodes = await self.link.run(
                "beat",
                [f"{GATEWAYS}epoch", f"{GATEWAYS}nodes"],
                [self._node, secrets.token_hex(8), int(self._times.settling_s * 1e6), int(bool(self._epoch))],
                is_probe=is_probe,
            )
            self._offset_us = int(now) - began_us
            if self._nodes != max(1, int(nodes)):
                self._nodes = max(1, int(nodes))
                self._shares = Shares(self._clocks, self._nodes, self._running)
            if epoch == self._epoch:
                return
            if self._epoch:
                logger.warning("Redis lost its memory: %d running requests are put back", len(self._live))
                with contextlib.suppress(Exception):  # budgets cannot be read either while the ledger is away
                    await self._flush()
                for request_id, hold in list(self._live.items()):
                    await self._register(request_id, hold, epoch)
            self._epoch = epoch  # only now: if the server fails in between, all of it is done again

    async def _register(self, request_id: str, hold: Hold, epoch: str | None = None) -> None:
        """Put a running request back; in a new epoch if one is given."""
        steps, lease_us = hold.steps, int(self._times.lease_s * 1e6)
        head = [self._epoch, 0] if epoch is None else [epoch, 1]
        arguments = [*head, request_id, lease_us, hold.tokens, hold.nano, *steps.meters(soft=False)]
        await self.link.run("register", [*steps.head, steps.orphan, *steps.keys], arguments)

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self._times.beat_s)
            try:
                await self._beat(is_probe=True)
                if self._was_down:
                    self._was_down = False
                    self._shares = Shares(self._clocks, self._nodes, self._running)
                await self._deliver_all()
                await self._renew()
            except RedisUnavailableError:
                self._was_down = True
            except Exception:
                logger.exception("a sign of life to Redis failed")

    async def _renew(self) -> None:
        """Renew the leases of what runs, three times in a lease."""
        now_s = self._clocks().monotonic_s
        if now_s - self._renewed_s < self._times.lease_s / 3:
            return
        by_tag: defaultdict[str, list[str]] = defaultdict(list)
        for request_id, hold in self._live.items():
            by_tag[hold.steps.plan.tag].append(request_id)
        for tag, ids in by_tag.items():
            keys = [f"{prefix_of(tag)}epoch", f"{prefix_of(tag)}leases"]
            reply = await self._run("renew", keys, [int(self._times.lease_s * 1e6), *ids])
            for request_id in reply[1:]:
                if (hold := self._live.get(request_id)) is not None and request_id not in self._settling:
                    await self._register(request_id, hold)
        self._renewed_s = now_s

    def _put(self, request_id: str, settling: Settling) -> None:
        if len(self._settling) >= MAX_WAITING:
            oldest = next(iter(self._settling))
            self._settling.pop(oldest).done.cancel()
            self._live.pop(oldest, None)
        self._settling[request_id] = settling

    async def _deliver_all(self) -> None:
        for request_id in list(self._settling):
            await self._deliver(request_id, is_last_word=True)

    async def _deliver(self, request_id: str, *, is_last_word: bool = False) -> None:
        """Bring one settlement to the server. What cannot be delivered waits for the next beat."""
        settling = self._settling.get(request_id)
        if settling is None or self._clocks().monotonic_s < settling.not_before_s:
            return
        prefix = prefix_of(settling.tag)
        keys = [f"{prefix}epoch", f"{prefix}leases", f"{prefix}r:{request_id}", f"{prefix}o:{request_id}"]
        try:
            await self._run("settle", keys, [request_id, settling.used.tokens, settling.used.nano])
        except RedisUnavailableError:
            if is_last_word:
                raise
            return
        if self._settling.get(request_id) is settling:
            del self._settling[request_id]
        self._live.pop(request_id, None)
        if not settling.done.done():
            settling.done.set_result(None)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _admit_without(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in by this gateway's share, if the rules' policies allow that."""
        try:
            reservation = await self._shares.admit(request_id, plan, ask)
        except LimitsUnavailable:
            self.num_denied += 1
            raise
        self.num_shared += 1
        return reservation

    async def _extend_without(self, request_id: str, hold: Hold, more: Amounts) -> Amounts:
        try:
            if hold.beside is None:
                hold.beside = await self._shares.join(request_id, hold.steps.plan)
        except LimitsUnavailable as error:
            hold.unavailable = error.rule
            return Amounts()
        shares: Shares = hold.beside.owner
        got = await shares.extend(hold.beside, Amounts(more.tokens))
        hold.rooms = [float(got.tokens)] * len(hold.rooms)
        return got

    def _running(self, meter: Meter) -> int:
        """Requests of this gateway that the server counted on a meter."""
        return sum(
            any(each.counter == meter.counter for each in hold.steps.plan.meters)
            for request_id, hold in self._live.items()
            if request_id not in self._settling
        )
