"""SQL that adds up whole hours [:first, :last): from sums where they are made, from rows where these are newer."""

from deepseek_gateway.usage.zones import HOUR_S

_FLOOR = "(SELECT hour FROM usage_floor)"
_MARKED = (
    "SELECT DISTINCT hour AS m FROM usage_marks "  # noqa: S608  fixed texts
    f"WHERE hour >= :first AND hour < :last AND hour >= {_FLOOR}"
)

OF_SUMS = ("u.hour >= :first", "u.hour < :last", f"u.hour NOT IN ({_MARKED})")
"""Conditions on hourly sums `u`: those that are what their rows say."""

FRESH = f"({_MARKED}) AS fresh CROSS JOIN ledger u"
"""Rows `u` of hours whose sums are old. SQLite begins with what stands before CROSS JOIN: a few hours."""

OF_FRESH = (f"u.created >= fresh.m * {HOUR_S}", f"u.created < (fresh.m + 1) * {HOUR_S}")

OF_LATE = ("u.created >= :first_s", f"u.created < {_FLOOR} * {HOUR_S}", "u.created < :last_s")
"""Conditions on rows `u` that came to hours whose rows had been deleted: they are in no sum."""


def hours(first: int, last: int) -> dict[str, object]:
    """The parameters of all that."""
    return {"first": first, "last": last, "first_s": first * HOUR_S, "last_s": last * HOUR_S}
