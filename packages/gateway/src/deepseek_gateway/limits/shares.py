"""What one gateway may let in by itself while Redis is away: its part of each rate, and nothing of a budget."""

from collections.abc import Callable
from dataclasses import replace

from deepseek_gateway.limits.limiter import Reservation
from deepseek_gateway.limits.local import LocalLimiter
from deepseek_gateway.limits.rulebook import Meter, Plan
from deepseek_gateway.limits.rules import Amounts, Ask, LimitReached, LimitRule, LimitsUnavailable, Now

MAX_PLANS = 1000


class Shares:
    """The limiter of one outage. Its buckets begin empty, so that what was spent before it is not given again.

    Args:
        clocks: the time.
        num_nodes: gateways that share the limits, as last known; 0 is nobody knows: then nothing is let in.
        running: how many requests of this gateway Redis had counted on a meter, and still run.
    """

    def __init__(self, clocks: Callable[[], Now], num_nodes: int, running: Callable[[Meter], int]) -> None:
        self._limiter = LocalLimiter(clocks=clocks, starts_empty=True, running=running)
        self._num_nodes = num_nodes
        self._plans: dict[Plan, Plan] = {}

    async def admit(self, request_id: str, plan: Plan, ask: Ask) -> Reservation:
        """Let a request in.

        Raises:
            LimitReached: the share is used up.
            LimitsUnavailable: a rule's policy is to refuse.
        """
        reservation = await self._limiter.admit(request_id, self._share(plan), ask)
        reservation.owner = self
        return reservation

    async def join(self, request_id: str, plan: Plan) -> Reservation:
        """A reservation of no tokens yet, for a stream that Redis let in.

        Raises:
            LimitsUnavailable: a rule's policy is to refuse.
        """
        share = self._share(plan)
        tokens = tuple(meter for meter in share.meters if meter.unit == "tokens")
        reservation = await self._limiter.join(request_id, replace(share, meters=tokens))
        reservation.owner = self
        return reservation

    async def extend(self, reservation: Reservation, more: Amounts) -> Amounts:
        """Hold more."""
        return await self._limiter.extend(reservation, more)

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replace what was held by what was used."""
        self._limiter.settle(reservation, used)

    def reached(self, reservation: Reservation) -> LimitReached:
        """The refusal for a stream that cannot extend."""
        return self._limiter.reached(reservation)

    def _share(self, plan: Plan) -> Plan:
        """The part of each limit that is this gateway's alone; soft rules rest."""
        share = self._plans.get(plan)
        if share is not None:
            return share
        meters: list[Meter] = []
        for meter in plan.meters:
            if meter.is_soft:
                continue
            if meter.rule.on_failure == "deny" or not 0 < self._num_nodes <= meter.limit:
                raise unavailable(meter.rule)
            meters.append(replace(meter, limit=meter.limit // self._num_nodes))
        tokens = [meter.limit for meter in meters if meter.unit == "tokens"]
        share = replace(plan, meters=tuple(meters), tightest_tokens=min(tokens, default=None))
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[plan] = share
        return share


def unavailable(rule: LimitRule) -> LimitsUnavailable:
    """The refusal of a rule that cannot be checked."""
    what = "budget" if rule.kind.period is not None else "limit"
    return LimitsUnavailable(rule, f"the {what} {rule.kind} (rule {rule.id}) cannot be checked now: try again in 1 s")
