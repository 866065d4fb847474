"""Numbers between bounds as grammar trees, digit by digit.

Texts have at most 15 significant digits, all of which doubles tell apart: what is less than a bound as a text is less
than it for whoever reads the number.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Final

from deepseek_engine.errors import GrammarError
from deepseek_engine.grammar.json_nodes import DIGIT, MAX_INTEGER_DIGITS
from deepseek_engine.grammar.nodes import EMPTY, NEVER, Chars, Node, Ref, Repeat, Text, alt, optional, seq

_MAX_DIGITS: Final = MAX_INTEGER_DIGITS
_LIMIT: Final = 10**_MAX_DIGITS - 1
_USUAL_LIMIT: Final = Decimal(10**9)
_MAX_LISTED: Final = 512
_MAX_MODULUS: Final = 64


def integers_between(low: int | None, high: int | None) -> Node:
    """Whole numbers from `low` to `high`; without one of them, up to 15 digits."""
    low = -_LIMIT if low is None else max(low, -_LIMIT)
    high = _LIMIT if high is None else min(high, _LIMIT)
    negative = NEVER if low >= 0 else seq("-", _digits_between(max(1, -high), -low))
    positive = NEVER if high < 0 else _digits_between(max(0, low), high)
    return alt(negative, positive)


def multiples_between(factor: int, low: int | None, high: int | None) -> Node | None:
    """Multiples of `factor` from `low` to `high`, a few hundred of them; None if there are more."""
    if low is None or high is None or (high - low) // factor > _MAX_LISTED:
        return None
    first = -(-low // factor) * factor
    return alt(*(str(value) for value in range(first, high + 1, factor)))


def multiples_rules(factor: int, prefix: str) -> dict[str, Node] | None:
    """Rules for all multiples of `factor`, positive ones and 0: one for each remainder. None if it is too large.

    The rule `PREFIX` is the start.
    """
    if factor > _MAX_MODULUS:
        return None

    rules: dict[str, Node] = {}
    for remainder in range(factor):
        options: list[Node] = [EMPTY] if remainder == 0 else []
        options += [seq(str(digit), Ref(f"{prefix}_{(remainder * 10 + digit) % factor}")) for digit in range(10)]
        rules[f"{prefix}_{remainder}"] = alt(*options)
    begins = (seq(str(digit), Ref(f"{prefix}_{digit % factor}")) for digit in range(1, 10))
    rules[prefix] = alt("0", *begins)
    return rules


def decimals_between(low: Decimal | None, high: Decimal | None, *, above: bool, below: bool) -> Node:
    """Numbers from `low` to `high`, without exponents; `above` and `below` leave the bound itself out."""
    limit = Decimal(_LIMIT)
    # Where there is no bound, one that leaves room for decimals.
    largest = max((abs(bound) for bound in (low, high) if bound is not None), default=Decimal(0))
    usual = limit if largest >= _USUAL_LIMIT else _USUAL_LIMIT
    bottom = _Bound(-usual, False) if low is None else _Bound.rounded(low, above, ROUND_CEILING)
    top = _Bound(usual, False) if high is None else _Bound.rounded(high, below, ROUND_FLOOR)
    if abs(bottom.value) > limit or abs(top.value) > limit:
        raise GrammarError(f"bounds of numbers are supported up to {limit}")
    zero = _Bound(Decimal(0), True)
    negative = NEVER
    if bottom.value < 0:
        negative = seq("-", _unsigned(-top if top.value < 0 else zero, -bottom))
    positive = NEVER if top.value < 0 else _unsigned(bottom if bottom.value >= 0 else _Bound(Decimal(0), False), top)
    return alt(negative, positive)


class _Bound:
    """A number of at most 15 digits, itself left out or not."""

    def __init__(self, value: Decimal, is_excluded: bool) -> None:
        self.value = value
        self.is_excluded = is_excluded

    @classmethod
    def rounded(cls, value: Decimal, is_excluded: bool, rounding: str) -> "_Bound":
        short = Context(prec=_MAX_DIGITS, rounding=rounding).create_decimal(value)
        if short.adjusted() < -_MAX_DIGITS and short:
            raise GrammarError(f"bounds of numbers are supported with up to {_MAX_DIGITS} decimals")
        return cls(short, is_excluded and short == value)

    def __neg__(self) -> "_Bound":
        return _Bound(-self.value, self.is_excluded)

    @property
    def whole(self) -> int:
        return math.floor(self.value)

    @property
    def fraction(self) -> str:
        """The decimals, without zeros at the end."""
        return f"{self.value - self.whole:f}"[2:].rstrip("0")


def _unsigned(low: _Bound, high: _Bound) -> Node:
    """Numbers from 0 on between two bounds."""
    if low.value > high.value or (low.value == high.value and (low.is_excluded or high.is_excluded)):
        return NEVER
    places = max(1, _MAX_DIGITS - len(str(high.whole)))
    if low.whole == high.whole:
        return seq(str(low.whole), _fraction(low, high, places))
    between = NEVER
    if high.whole - low.whole > 1:
        any_fraction = optional(seq(".", Repeat(DIGIT, 1, places)))
        between = seq(_digits_between(low.whole + 1, high.whole - 1), any_fraction)
    return alt(
        seq(str(low.whole), _fraction(low, None, places)), between, seq(str(high.whole), _fraction(None, high, places))
    )


def _fraction(low: _Bound | None, high: _Bound | None, places: int) -> Node:
    """What follows the whole part: nothing, or a point and at least one digit."""
    low_digits = None if low is None else low.fraction
    high_digits = None if high is None else high.fraction
    is_above = low is not None and low.is_excluded
    is_below = high is not None and high.is_excluded
    whole_fits = not (low_digits or (low is not None and is_above)) and not (high_digits == "" and is_below)
    places = max(places, len(low_digits or "") + 1, len(high_digits or "") + 1)
    digits = _decimals(low_digits, high_digits, is_above, is_below, places, is_first=True)
    return alt(EMPTY if whole_fits else NEVER, seq(".", digits))


def _decimals(
    low: str | None,
    high: str | None,
    is_above: bool,
    is_below: bool,
    places: int,
    *,
    is_first: bool = False,
) -> Node:
    """Digits after the point, read as a fraction between two others; None is no bound (any more)."""
    if low is None and high is None:
        return Repeat(DIGIT, int(is_first), places)
    if low == "" and not is_above:
        return _decimals(None, high, False, is_below, places, is_first=is_first)
    if high == "":
        # Only zeros are not more than that.
        return NEVER if is_below or low is not None else Repeat(Text("0"), int(is_first), places)
    can_end = low is None and not is_first
    options: list[Node] = [EMPTY] if can_end else []
    if places > 0:
        bottom = int(low[0]) if low else 0
        top = int(high[0]) if high is not None else 9
        for digit in range(bottom, top + 1):
            rest_low = (low[1:] if low else "") if low is not None and digit == bottom else None
            rest_high = high[1:] if high is not None and digit == top else None
            is_tight = rest_low is not None or rest_high is not None
            rest = _decimals(rest_low, rest_high, is_above, is_below, places - 1) if is_tight else None
            options.append(seq(str(digit), Repeat(DIGIT, 0, places - 1) if rest is None else rest))
    return alt(*options)


def _digits_between(low: int, high: int) -> Node:
    """Whole numbers from 0 on, without leading zeros."""
    if low > high:
        return NEVER
    options: list[Node] = []
    for count in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (count - 1) if count > 1 else 0)
        most = min(high, 10**count - 1)
        options.append(_same_length(str(least), str(most)))
    return alt(*options)


def _same_length(low: str, high: str) -> Node:
    """Digit strings of one length from `low` to `high`."""
    if low == high:
        return Text(low)
    if set(low) == {"0"} and set(high) == {"9"}:
        return Repeat(DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return seq(low[0], _same_length(low[1:], high[1:]))
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    options: list[Node] = []
    if rest and set(low[1:]) != {"0"}:
        options.append(seq(low[0], _same_length(low[1:], "9" * rest)))
        first += 1
    if rest and set(high[1:]) != {"9"}:
        options.append(seq(high[0], _same_length("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        options.append(seq(Chars.of((ord("0") + first, ord("0") + last)), Repeat(DIGIT, rest, rest)))
    return alt(*options)
