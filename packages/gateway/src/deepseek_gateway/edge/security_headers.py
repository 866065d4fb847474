"""Headers that tell browsers to do no more with an answer than it was meant for."""

from collections.abc import Sequence

Headers = list[tuple[bytes, bytes]]

COMMON: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""A route that sets one of these itself keeps its own: pages need another policy, files may be kept."""

_COMMON_NAMES = frozenset(dict(COMMON))

HSTS = (b"strict-transport-security", b"max-age=31536000")
"""Only over TLS: browsers ignore it elsewhere."""


def secured(headers: Sequence[tuple[bytes, bytes]], *, is_tls: bool) -> Headers:
    """An answer's headers, with those that it lacks."""
    given = dict(headers)
    added = COMMON if _COMMON_NAMES.isdisjoint(given) else [pair for pair in COMMON if pair[0] not in given]
    return [*headers, *added, HSTS] if is_tls else [*headers, *added]
