"""One request's share of its limits: what it holds, and more as its stream grows."""

from dataclasses import dataclass

from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.limits.limiter import Limiter, Reservation
from deepseek_gateway.limits.rulebook import Plan
from deepseek_gateway.limits.rules import Amounts, Ask, LimitReached, LimitsUnavailable
from deepseek_gateway.money.prices import Price
from deepseek_gateway.relay.request import GenerationRequest

LOW_WATER_TOKENS = 32
"""A stream asks for its next slice when it has fewer than so many tokens left, before it needs them."""

LEAST_ANSWER_TOKENS = 16
"""An answer whose length nobody gave begins when at least so much is free; it is cut to what it got."""


@dataclass(frozen=True, slots=True)
class SliceSizes:
    """How much is held at a time.

    Attributes:
        slice_tokens: tokens of a stream's answer that are held at a time.
        overrun_tokens: tokens that an engine may make between our decision to end it and its end; they stay held.
        default_max_tokens: tokens of an answer in one piece that gives no max_tokens.
    """

    slice_tokens: int
    overrun_tokens: int
    default_max_tokens: int

    def overrun(self, plan: Plan) -> int:
        """The overrun of a stream. It never makes a small limit or slice unusable."""
        tightest = self.slice_tokens if plan.tightest_tokens is None else plan.tightest_tokens // 4
        return max(1, min(self.overrun_tokens, self.slice_tokens // 4, tightest // 4))


def ask_of(request: GenerationRequest, plan: Plan, price: Price | None, sizes: SliceSizes) -> Ask:
    """What a request must hold to begin.

    A stream can extend while it runs, so it begins with a slice: a quarter of the tightest limit at most, and less if
    less is free. Any other answer is counted only at its end, so it holds its worst case.
    """
    prompt = request.prompt.estimate
    longest = (request.max_tokens or sizes.default_max_tokens) * request.choices
    if request.stream:
        wanted = sizes.slice_tokens if request.max_tokens is None else min(sizes.slice_tokens, longest)
        wanted = min([wanted, *_affordable(plan, price, prompt, share=4)])
        least = min(wanted, sizes.overrun(plan))
    elif request.max_tokens is None:
        # Without a wish of the caller the answer is cut to what fits: see `clamp_of`.
        wanted = min([longest, *_affordable(plan, price, prompt, share=1)])
        least = min(wanted, LEAST_ANSWER_TOKENS)
    else:
        wanted = least = longest
    amounts = _amounts(price, prompt, wanted), _amounts(price, prompt, least)
    return Ask(prompt, least, *amounts, is_exact=request.prompt.is_exact)


def clamp_of(request: GenerationRequest, reservation: Reservation, price: Price | None) -> int | None:
    """The max_tokens to set where the caller set none and the answer must fit into what is held.

    A prompt that is longer than its estimate may take what is left beside it, and then of the answer.
    """
    if request.stream or request.max_tokens is not None:
        return None
    size, left = request.prompt, reservation.left
    fitting = _fitting(reservation, price, size.estimate, Amounts())
    if fitting is None:
        return None
    at_worst = _fitting(reservation, price, size.most, left)
    if at_worst is not None and at_worst >= LEAST_ANSWER_TOKENS:  # else nobody could count the prompt
        fitting = min(fitting, at_worst)
    return max(1, fitting // request.choices)


def _fitting(reservation: Reservation, price: Price | None, prompt: int, left: Amounts) -> int | None:
    """Answer tokens that fit, after a prompt, into what is held and left beside it; None where nothing limits them."""
    plan = reservation.plan
    fitting: list[int] = []
    if plan.tightest_tokens is not None:
        fitting.append(reservation.tokens + left.tokens - prompt)
    if plan.tightest_nano is not None and price is not None and price.dearest_output:
        spare = reservation.nano + left.nano - price.estimate_nano(prompt, 0)
        fitting.append(spare // price.dearest_output)
    return min(fitting, default=None)


class Allowance:
    """A reservation, and when to extend it."""

    def __init__(
        self,
        limiter: Limiter,
        reservation: Reservation,
        price: Price | None,
        sizes: SliceSizes,
        longest: int | None = None,
    ) -> None:
        self.limiter = limiter
        self.reservation = reservation
        self.price = price
        plan = reservation.plan
        self._tokens_count = plan.tightest_tokens is not None
        self._money_counts = plan.tightest_nano is not None and price is not None
        self._slice = sizes.slice_tokens
        self._overrun = sizes.overrun(plan)
        self._low_water = max(self._overrun, min(sizes.slice_tokens // 2, LOW_WATER_TOKENS))
        self._longest = longest
        self._refused_at = -1

    def cost_nano(self, counts: TokenCounts) -> int:
        """What so many tokens cost; 0 where the model has no price."""
        return 0 if self.price is None else self.price.cost_nano(counts)

    def covers(self, prompt: int, completion: int) -> bool:
        """Whether it is plain that what is held is enough for now: so it is at most events of most streams."""
        if self._money_counts:
            return False
        return not self._tokens_count or prompt + completion + self._low_water <= self.reservation.tokens

    def covers_exactly(self, counts: TokenCounts) -> bool:
        """Whether what is held is enough for now."""
        missing = self._missing(counts, self._low_water)
        return missing.tokens <= 0 and missing.nano <= 0

    async def extend(self, counts: TokenCounts) -> bool:
        """Hold more. Gives whether the stream may go on: it may as long as it holds what the engine can overrun by."""
        if counts.total != self._refused_at:
            missing = self._missing(counts, self._low_water)
            by_money = 0 if self.price is None else self._slice * self.price.dearest_output
            more = Amounts(
                max(0, missing.tokens) + self._slice if self._tokens_count else 0,
                max(0, missing.nano) + by_money if self._money_counts else 0,
            )
            got = await self.limiter.extend(self.reservation, more)
            if (self._tokens_count and got.tokens == 0) or (self._money_counts and by_money and got.nano == 0):
                self._refused_at = counts.total
        missing = self._missing(counts, self._overrun)
        return missing.tokens <= 0 and missing.nano <= 0

    def reached(self) -> LimitReached | LimitsUnavailable:
        """The limit that ends the stream."""
        return self.limiter.reached(self.reservation)

    def settle(self, counts: TokenCounts) -> None:
        """Give back what was not used."""
        self.limiter.settle(self.reservation, Amounts(counts.total, self.cost_nano(counts)))

    async def settled(self) -> None:
        """Wait until what was given back can be had by others."""
        await self.limiter.settled(self.reservation)

    def _missing(self, counts: TokenCounts, ahead: int) -> Amounts:
        """What is missing to hold what was used and so many tokens more; no more than the answer can still have."""
        if self._longest is not None:
            ahead = max(0, min(ahead, self._longest - counts.completion))
        tokens = counts.total + ahead - self.reservation.tokens if self._tokens_count else 0
        nano = 0
        if self._money_counts and self.price is not None:
            nano = self.price.cost_nano(counts) + ahead * self.price.dearest_output - self.reservation.nano
        return Amounts(tokens, nano)


def _amounts(price: Price | None, prompt: int, completion: int) -> Amounts:
    return Amounts(prompt + completion, 0 if price is None else price.estimate_nano(prompt, completion))


def _affordable(plan: Plan, price: Price | None, prompt: int, share: int) -> list[int]:
    """Answer tokens that the tightest limits allow: a quarter of a limit (`share` 4), or all but the prompt (1)."""
    fitting: list[int] = []
    if plan.tightest_tokens is not None:
        fitting.append(plan.tightest_tokens // share if share > 1 else plan.tightest_tokens - prompt)
    if plan.tightest_nano is not None and price is not None and price.dearest_output:
        spare = plan.tightest_nano // share if share > 1 else plan.tightest_nano - price.estimate_nano(prompt, 0)
        fitting.append(spare // price.dearest_output)
    return [max(1, tokens) for tokens in fitting]
