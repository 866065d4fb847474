"""Numbers, times and durations as the pages write them."""

import math
import re
import time
from datetime import UTC, datetime

from deepseek_gateway.money.amounts import NANO

NONE = "–"
_GROUPED = re.compile("(-?[0-9]{1,3}(?:([ ,_\u00a0\u202f\uff0c])[0-9]{3})(?:\\2[0-9]{3})*)((?:[.][0-9]+)?)")
SIGNS = {"USD": "$", "CNY": "¥", "EUR": "€", "GBP": "£", "JPY": "¥"}


def ungrouped(text: str) -> str:
    """A number as it is written without marks between its thousands: 1,234.50 is 1234.50.

    Any other text stays as it is: in much of Europe 12,5 is twelve and a half, so a comma must not just go.
    """
    match = _GROUPED.fullmatch(text)
    return text if match is None else match[1].replace(match[2], "") + match[3]


def number(value: float | None) -> str:
    """1,234,567."""
    return NONE if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """950, 12.3K, 4.56M: three digits."""
    if value is None:
        return NONE
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    """8.2 ms, 340 ms, 1.25 s, 2.1 min."""
    if value is None:
        return NONE
    if value < 999.5:
        return f"{value:.1f} ms" if value < 9.95 else f"{value:.0f} ms"
    return f"{value / 1000:.2f} s" if value < 59_995 else f"{value / 60_000:.1f} min"


def percent(value: float | None) -> str:
    """0.4 %."""
    if value is None:
        return NONE
    return f"{value * 100:.1f} %" if 0 < value < 0.0995 else f"{value * 100:.0f} %"


def money(nano: int | None, currency: str) -> str:
    """$1,234.50, ¥0.0042: two digits after the point, or as many as show two digits that count."""
    if nano is None:
        return NONE
    value = nano / NANO
    digits = 2 if nano == 0 or abs(value) >= 0.1 else min(9, 1 - math.floor(math.log10(abs(value))))
    whole, _, decimals = f"{abs(value):,.{digits}f}".partition(".")
    shown = f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"
    return f"{'-' if nano < 0 else ''}{SIGNS.get(currency, currency + chr(0xA0))}{shown}"


def change(before: float, now: float) -> str:
    """+12 %, -3 %, ±0 %; nothing where there was nothing before. Growth of more than tenfold is ×14."""
    if not before:
        return ""
    ratio = now / before
    if ratio >= 10:
        return f"×{ratio:,.0f}"
    percents = round((ratio - 1) * 100)
    return f"{percents:+d} %" if percents else "±0 %"


def moment(seconds: float | None, exactly: bool = False) -> str:
    """A Unix time in UTC, to the minute or exactly: to the second."""
    form = "%Y-%m-%d %H:%M:%S" if exactly else "%Y-%m-%d %H:%M"
    return NONE if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime(form)


def iso(seconds: float) -> str:
    """A Unix time for the `datetime` of a `time` element."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def day(seconds: float) -> str:
    """The UTC day of a Unix time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def parse_day(text: str) -> float | None:
    """The Unix time at which a day (2026-11-23) begins in UTC; None when it is no day."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def today() -> float:
    """The Unix time at which today began in UTC."""
    return time.time() // 86400 * 86400
