"""Hours and days of a time zone as arithmetic that a database can do."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

HOUR_S = 3600
DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Offsets:
    """How far a zone is ahead of UTC: from a Unix time on, so many seconds. The first is for all before, too."""

    parts: tuple[tuple[int, int], ...]

    @property
    def is_whole_hours(self) -> bool:
        """Whether each hour of UTC is one of the zone's."""
        first, *others = self.parts
        return first[1] % HOUR_S == 0 and all(at % HOUR_S == 0 and offset % HOUR_S == 0 for at, offset in others)

    def local(self, moment: str) -> str:
        """SQL for the zone's own clock, in seconds, of an expression for a Unix time."""
        (_, first), *others = self.parts
        if not others:
            return f"({moment} + {first})" if first else moment
        bounds = [at for at, _ in others]
        offsets = [first, *(offset for _, offset in others)]
        cases = " ".join(f"WHEN {moment} < {at} THEN {offset}" for at, offset in zip(bounds, offsets, strict=False))
        return f"({moment} + CASE {cases} ELSE {offsets[-1]} END)"


def offsets_of(zone: str, since: int, until: int) -> Offsets:
    """The offsets of a zone within [since, until]."""
    if zone == "UTC":
        return Offsets(((since, 0),))
    return Offsets(tuple(_changes(ZoneInfo(zone), since, max(since, until))))


def _changes(zone: ZoneInfo, since: int, until: int) -> Iterator[tuple[int, int]]:
    at, offset = since, _offset(zone, since)
    yield at, offset
    while at < until:
        after = min(at + DAY_S, until)
        if _offset(zone, after) != offset:
            low, high = at, after  # the offset changes in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            offset = _offset(zone, high)
            yield high, offset
            after = high
        at = after


def _offset(zone: ZoneInfo, moment: int) -> int:
    found = datetime.fromtimestamp(moment, UTC).astimezone(zone).utcoffset()
    assert found is not None
    return round(found.total_seconds())


def day_text(day: int) -> str:
    """The date of a day that is counted from 1970-01-01."""
    return datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y-%m-%d")


def hour_text(hour: int) -> str:
    """The hour of a clock that is counted from 1970-01-01."""
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime("%Y-%m-%dT%H:00")
