"""Takes secrets out of values before they are kept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, cast

MASK = "…"
MAX_DEPTH = 12

_SECRET_NAME = re.compile(
    r"secret|passw|pepper|credential|authorization|cookie|private|(^|_)token$|(^|_)hash$|^key$|api_key|upstream_key"
    r"|payload_key|store_url|redis_url",
    re.IGNORECASE,
)
_SECRET_TEXTS = (
    (re.compile(r"(dsk_[0-9A-Za-z]{12})_[0-9A-Za-z]{8,}(_[0-9A-Za-z]{6})?"), rf"\1_{MASK}"),
    (re.compile(r"(://[^\s/:@]*):[^\s@]+@"), rf"\1:{MASK}@"),
    (re.compile(r"(?i)\b(bearer) +[^\s\"']{8,}"), rf"\1 {MASK}"),
    (re.compile(r"\b(sk)-[0-9A-Za-z_-]{16,}"), rf"\1-{MASK}"),
)


def mask(value: object, depth: int = 0) -> Any:
    """A value of plain JSON types like the given one; what is named or looks like a secret is `…`.

    A name tells more than a look: `secret_hash`, `password` and the like go whatever they hold, but for null, true and
    false, which say no more than whether one is there.
    """
    if depth > MAX_DEPTH:
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return mask_text(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {str(name): _field(str(name), held, depth) for name, held in pairs}
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, Sequence | set | frozenset):
        return [mask(item, depth + 1) for item in cast("Sequence[object]", value)]
    return mask_text(str(value))  # an enum, a path; a SecretStr shows its own mask


def mask_text(text: str) -> str:
    """A text without keys, passwords in URLs, and bearer tokens."""
    for form, shown in _SECRET_TEXTS:
        text = form.sub(shown, text)
    return text


def _field(name: str, value: object, depth: int) -> Any:
    if _SECRET_NAME.search(name) and not (value is None or isinstance(value, bool)):
        return MASK
    return mask(value, depth + 1)
