"""What this gateway is to Redis: a name with a sign of life, requests that hold, and settlements on their way.

Whatever the server loses, this gateway knows of its own requests, and puts it back.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from deepseek_gateway.limits.limiter import Reservation
from deepseek_gateway.limits.redis_link import RedisLink, RedisUnavailableError
from deepseek_gateway.limits.redis_steps import GATEWAYS, Steps, prefix_of
from deepseek_gateway.limits.rulebook import Meter
from deepseek_gateway.limits.rules import Amounts, LimitRule, Now
from deepseek_gateway.limits.shares import Shares

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


DEFAULT_TIMES = RedisTimes()


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
    """A settlement on its way to the server; `told` hears what it leaves of each rule, where the server says so."""

    tag: str
    used: Amounts
    not_before_s: float
    told: Callable[[list[float]], None] | None = None
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RedisNode:
    """One gateway among those that share limits.

    Args:
        link: the server.
        flush: brings this gateway's settled rows into the ledger.
        clocks: the time.
        times: how long things take.
    """

    def __init__(
        self, link: RedisLink, flush: Callable[[], Awaitable[None]], clocks: Callable[[], Now], times: RedisTimes
    ) -> None:
        self.link = link
        self.times = times
        self._flush = flush
        self._clocks = clocks
        self._name = secrets.token_hex(8)
        self.epoch = ""
        """The name of the server's memory, as last known."""
        self._offset_us = 0.0
        self._beating = asyncio.Lock()
        self._beater: asyncio.Task[None] | None = None
        self._was_down = False
        self._renewed_s = 0.0
        self.live: dict[str, Hold] = {}
        self.settling: dict[str, Settling] = {}
        self.num_nodes = 0
        self.shares = Shares(clocks, 0, self._running)

    async def start(self) -> None:
        """Meet the server, if it is there, and keep in touch."""
        if await self.link.warm():
            with contextlib.suppress(RedisUnavailableError):
                await self.beat()
        self._beater = asyncio.create_task(self._beat_forever())

    async def close(self) -> None:
        """Tell the server what was settled, if it is there, and go silent."""
        if self._beater is not None:
            self._beater.cancel()
            await asyncio.gather(self._beater, return_exceptions=True)
        for settling in self.settling.values():
            settling.not_before_s = 0.0
        with contextlib.suppress(RedisUnavailableError):
            await self.deliver_all()

    async def run_leased(self, script: str, steps: Steps, tail: Sequence[str | int]) -> list[str]:
        """Run `admit` or `extend`: with a lease, and a deadline after which it must not be done any more."""
        keys = [*steps.head, *steps.keys]
        for _ in range(2):
            deadline_us = (self._clocks().monotonic_s + self.link.timeout_s) * 1e6 + self._offset_us
            lease = [steps.request_id, int(self.times.lease_s * 1e6), f"{deadline_us:.0f}"]
            reply = await self.run(script, keys, [*lease, *tail])
            if reply[0] != "late":
                return reply
            await self.beat()  # somebody set a clock
        raise RedisUnavailableError("too late")

    async def run(self, script: str, keys: Sequence[str], tail: Sequence[str | int]) -> list[str]:
        """Run a step under the epoch; when the server has another, learn it first."""
        reply = await self.link.run(script, keys, [self.epoch, 0, *tail])
        if reply[0] == "epoch":
            await self.beat()
            reply = await self.link.run(script, keys, [self.epoch, 1, *tail])
        return reply

    async def beat(self, *, is_probe: bool = False) -> None:
        """Learn the server's clock and epoch. In a new one, put back what runs."""
        async with self._beating:
            began_us = self._clocks().monotonic_s * 1e6
            now, epoch, nodes = await self.link.run(
                "beat",
                [f"{GATEWAYS}epoch", f"{GATEWAYS}nodes"],
                [self._name, secrets.token_hex(8), int(self.times.settling_s * 1e6), int(bool(self.epoch))],
                is_probe=is_probe,
            )
            self._offset_us = int(now) - began_us
            if self.num_nodes != max(1, int(nodes)):
                self.num_nodes = max(1, int(nodes))
                self.shares = Shares(self._clocks, self.num_nodes, self._running)
            if epoch == self.epoch:
                return
            if self.epoch:
                logger.warning("Redis lost its memory: %d running requests are put back", len(self.live))
                with contextlib.suppress(Exception):  # budgets cannot be read either while the ledger is away
                    await self._flush()
                for request_id, hold in list(self.live.items()):
                    await self.register(request_id, hold, epoch)
            self.epoch = epoch  # only now: if the server fails in between, all of it is done again

    async def register(self, request_id: str, hold: Hold, epoch: str | None = None) -> None:
        """Put a running request back; in a new epoch if one is given."""
        steps, lease_us = hold.steps, int(self.times.lease_s * 1e6)
        head = [self.epoch, 0] if epoch is None else [epoch, 1]
        arguments = [*head, request_id, lease_us, hold.tokens, hold.nano, *steps.meters()]
        await self.link.run("register", [*steps.head, steps.orphan, *steps.keys], arguments)

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self.times.beat_s)
            try:
                await self.beat(is_probe=True)
                if self._was_down:
                    self._was_down = False
                    self.shares = Shares(self._clocks, self.num_nodes, self._running)
                await self.deliver_all()
                await self.renew()
            except RedisUnavailableError:
                self._was_down = True
            except Exception:
                logger.exception("a sign of life to Redis failed")

    async def renew(self) -> None:
        """Renew the leases of what runs, three times in a lease."""
        now_s = self._clocks().monotonic_s
        if now_s - self._renewed_s < self.times.lease_s / 3:
            return
        by_tag: defaultdict[str, list[str]] = defaultdict(list)
        for request_id, hold in self.live.items():
            by_tag[hold.steps.plan.tag].append(request_id)
        for tag, ids in by_tag.items():
            keys = [f"{prefix_of(tag)}epoch", f"{prefix_of(tag)}leases"]
            reply = await self.run("renew", keys, [int(self.times.lease_s * 1e6), *ids])
            for request_id in reply[1:]:
                if (hold := self.live.get(request_id)) is not None and request_id not in self.settling:
                    await self.register(request_id, hold)
        self._renewed_s = now_s

    def put(self, request_id: str, settling: Settling) -> None:
        """Keep a settlement until it is delivered."""
        if len(self.settling) >= MAX_WAITING:
            oldest = next(iter(self.settling))
            done = self.settling.pop(oldest).done
            if not done.done():  # to cancel it would cancel the request that waits for it
                done.set_result(None)
            self.live.pop(oldest, None)
        self.settling[request_id] = settling

    async def deliver_all(self) -> None:
        """Bring all settlements to the server.

        Raises:
            RedisUnavailableError: it does not answer.
        """
        for request_id in list(self.settling):
            await self.deliver(request_id, is_last_word=True)

    async def deliver(self, request_id: str, *, is_last_word: bool = False) -> None:
        """Bring one settlement to the server. What cannot be delivered waits for the next beat."""
        settling = self.settling.get(request_id)
        if settling is None or self._clocks().monotonic_s < settling.not_before_s:
            return
        prefix = prefix_of(settling.tag)
        keys = [f"{prefix}epoch", f"{prefix}leases", f"{prefix}r:{request_id}", f"{prefix}o:{request_id}"]
        try:
            reply = await self.run("settle", keys, [request_id, settling.used.tokens, settling.used.nano])
        except RedisUnavailableError:
            if is_last_word:
                raise
            return
        if self.settling.get(request_id) is settling:
            del self.settling[request_id]
        self.live.pop(request_id, None)
        if len(reply) > 1 and settling.told is not None:
            settling.told([float(room) for room in reply[1:]])
        if not settling.done.done():
            settling.done.set_result(None)

    def _running(self, meter: Meter) -> int:
        """Requests of this gateway that the server counted on a meter."""
        return sum(
            any(each.counter == meter.counter for each in hold.steps.plan.meters)
            for request_id, hold in self.live.items()
            if request_id not in self.settling
        )
