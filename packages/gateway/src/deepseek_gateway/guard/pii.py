"""Mask personal data in text that is stored: pure functions, one pass for each kind.

What is masked keeps its kind (`[email]`, `[card]`), so that a reader still understands the text. Numbers that have a
checksum (resident ids, cards, IBANs) are masked only where it is right; what merely looks like one stays.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, cast, get_args

Kind = Literal["email", "iban", "resident_id", "card", "phone", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of their claims: a place that two kinds could have belongs to the first."""


class Found(NamedTuple):
    """Personal data in a text, from `start` to `end`."""

    start: int
    end: int
    kind: Kind


_MAX_PASSES = 8
_GONE = "\0"

_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
_SEPARATED = "[ \u00a0-]?"

_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9_%+](?:[A-Za-z0-9._%+'-]{0,63})@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}",
    re.ASCII,
)
_RESIDENT_ID = re.compile(
    r"(?<![0-9A-Za-z])[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx]"
    r"(?![0-9A-Za-z])"
)
_CARD = re.compile(rf"(?<![0-9A-Za-z+])(?<![0-9][ -])[2-6](?:{_SEPARATED}[0-9]){{12,18}}(?![0-9A-Za-z])")
_PHONES = (
    re.compile(
        rf"(?<![0-9A-Za-z+])(?:(?:\+|00)?86{_SEPARATED})?1[3-9][0-9]{_SEPARATED}[0-9]{{4}}{_SEPARATED}[0-9]{{4}}"
        r"(?![0-9A-Za-z])"
    ),
    re.compile(r"(?<![0-9A-Za-z])\+[1-9](?:[ .()-]{0,2}[0-9]){6,14}(?![0-9A-Za-z])"),
    re.compile(
        r"(?<![0-9A-Za-z-])(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}(?![0-9A-Za-z-])"
    ),
    re.compile(r"(?<![0-9A-Za-z-])(?:\(0[0-9]{2,3}\) ?|0[0-9]{2,3}-)[0-9]{7,8}(?![0-9A-Za-z-])"),
)
_IPV4 = re.compile(r"(?<![0-9A-Za-z.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?[0-9A-Za-z])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f:]{2,39}(?:\.[0-9]{1,3}){0,3}(?!\.?[0-9A-Za-z:])")

_IBAN_START = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}")
_IBAN_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 "
    "FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
    "LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 "
    "SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
"""Countries and the length of their IBANs, of the SWIFT registry."""
_IBAN_LENGTH = {entry[:2]: int(entry[2:]) for entry in _IBAN_LENGTHS.split()}


def find_pii(text: str, kinds: tuple[Kind, ...] = KINDS) -> list[Found]:
    """Personal data in a text, in order; no two overlap."""
    plain = text.translate(_WIDE)  # as long as the text: full width digits are digits
    found: list[Found] = []
    for _ in range(_MAX_PASSES):
        new = _find_once(plain, kinds)
        if not new:
            break
        found += new
        # What stood beside data may be data of its own once that is gone.
        plain = _replaced(plain, sorted(new), lambda one: _GONE * (one.end - one.start))
    return sorted(found)


def _replaced(text: str, found: list[Found], by: Callable[[Found], str]) -> str:
    parts: list[str] = []
    end = 0
    for one in found:
        parts += [text[end : one.start], by(one)]
        end = one.end
    return "".join([*parts, text[end:]])


def _find_once(plain: str, kinds: tuple[Kind, ...]) -> list[Found]:
    found: list[Found] = []
    taken = bytearray(len(plain))
    for kind in KINDS:
        for start, end in _FINDERS[kind](plain) if kind in kinds else ():
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append(Found(start, end, kind))
    return found


def mask_pii(text: str, kinds: tuple[Kind, ...] = KINDS) -> str:
    """The text with `[kind]` where personal data was; the same object when there was none."""
    found = find_pii(text, kinds)
    return _replaced(text, found, lambda one: f"[{one.kind}]") if found else text


def mask_json(value: Any, kinds: tuple[Kind, ...] = KINDS) -> Any:
    """A JSON value with all its strings masked; keys stay."""
    if isinstance(value, str):
        return mask_pii(value, kinds)
    if isinstance(value, list):
        return [mask_json(item, kinds) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: mask_json(item, kinds) for name, item in cast("dict[str, Any]", value).items()}
    return value


def is_luhn(digits: str) -> bool:
    """Whether the last digit of a card number checks."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def is_resident_id(number: str) -> bool:
    """Whether the last character of a Chinese resident id (GB 11643) checks."""
    total = sum(int(digit) * (2 ** (17 - position) % 11) for position, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def is_iban(compact: str) -> bool:
    """Whether an IBAN without spaces has its country's length and checks (ISO 13616)."""
    if len(compact) != _IBAN_LENGTH.get(compact[:2].upper()):
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


def _matches(
    pattern: re.Pattern[str], check: Callable[[str], bool] | None = None
) -> Callable[[str], Iterator[tuple[int, int]]]:
    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text):
            if check is None or check(match[0]):
                yield match.span()

    return find


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN_START.finditer(text):
        wanted = _IBAN_LENGTH.get(match[0][:2].upper(), 0)
        compact, at = "", match.start()
        while at < len(text) and len(compact) < wanted:
            if text[at].isascii() and text[at].isalnum():
                compact += text[at]
            elif text[at] not in " \u00a0-" or text[at - 1] in " \u00a0-":
                break
            at += 1
        ends = at >= len(text) or not (text[at].isascii() and text[at].isalnum())
        if compact and ends and is_iban(compact):
            yield match.start(), at


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _PHONES:
        for match in pattern.finditer(text):
            yield match.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    yield from _matches(_IPV6, _is_address)(text)  # it may end in an IPv4 address
    yield from _matches(_IPV4, _is_address)(text)


def _is_address(text: str) -> bool:
    if not any(char.isdigit() for char in text):  # a::b is a path in many languages
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_card(text: str) -> bool:
    digits = "".join(char for char in text if char.isdigit())
    return len(set(digits)) > 1 and is_luhn(digits)


_FINDERS: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _matches(_EMAIL),
    "iban": _ibans,
    "resident_id": _matches(_RESIDENT_ID, is_resident_id),
    "card": _matches(_CARD, _is_card),
    "phone": _phones,
    "ip": _addresses,
}
