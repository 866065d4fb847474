"""Money as text and back, exactly."""

import re

NANO = 10**9


def money_text(nano: int) -> str:
    """Nano-units as a decimal number: two digits at least, nine at most."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{decimals}"


def parse_money(text: str) -> int:
    """Nano-units of a decimal number such as `12.50`.

    Raises:
        ValueError: it is none, or has more than nine digits after the point.
    """
    match = re.fullmatch(r"(-?)([0-9]{1,15})(?:\.([0-9]{1,9}))?", text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no amount of money such as 12.50, with nine digits after the point at most")
    nano = int(match[2]) * NANO + int((match[3] or "0").ljust(9, "0"))
    return -nano if match[1] else nano
