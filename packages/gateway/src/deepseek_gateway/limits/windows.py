"""Calendar windows: the day, the month, and all time, each beginning at midnight of a time zone."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from deepseek_gateway.limits.rules import Period

FOREVER = 2.0**40
"""A Unix time that nobody reaches."""


@dataclass(frozen=True, slots=True)
class Window:
    """[start, end) in Unix seconds."""

    start: float
    end: float

    @property
    def resets_at(self) -> str:
        """The end in UTC, for people."""
        return datetime.fromtimestamp(self.end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


EVER = Window(0.0, FOREVER)


class Calendar:
    """The windows of now. A clock that goes back stays in the window it had reached."""

    def __init__(self) -> None:
        self._current: dict[tuple[Period, str], Window] = {}

    def window(self, period: Period, zone: str, wall_s: float) -> Window:
        """The window of a moment."""
        known = self._current.get((period, zone))
        if known is None or wall_s >= known.end:
            known = self._current[period, zone] = window_of(period, zone, wall_s)
        return known


def window_of(period: Period, zone: str, wall_s: float) -> Window:
    """The day or month of a time zone in which a Unix time lies."""
    if period == "ever":
        return EVER
    at = datetime.fromtimestamp(wall_s, _zone(zone))
    if period == "day":
        first = datetime(at.year, at.month, at.day)  # noqa: DTZ001  the zone is added below, after the arithmetic
        following = first + timedelta(days=1)
    else:
        first = datetime(at.year, at.month, 1)  # noqa: DTZ001
        following = datetime(at.year + at.month // 12, at.month % 12 + 1, 1)  # noqa: DTZ001
    start, end = (moment.replace(tzinfo=_zone(zone)).timestamp() for moment in (first, following))
    return Window(start, end)


@lru_cache(64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
