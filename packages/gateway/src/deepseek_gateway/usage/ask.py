"""A question about usage as people write it: the admin API's parameters and the command's flags, checked alike."""

from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Final
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deepseek_gateway.usage.question import MAX_LINES, Dimension, Order, Question

DEFAULT_BY: Final = (Dimension.DAY, Dimension.KEY)


def parse_dimensions(text: str) -> tuple[Dimension, ...]:
    """The dimensions between commas.

    Raises:
        ValueError: one is none, or stands there twice.
    """
    names = [name.strip() for name in text.split(",")]
    for at, name in enumerate(names):
        if name not in set(Dimension):
            raise ValueError(f"{name[:40]!r} is none of: {', '.join(Dimension)}")
        if name in names[:at]:
            raise ValueError(f"{name!r} is there twice")
    return tuple(map(Dimension, names))


def _dimensions(text: str) -> str:
    parse_dimensions(text)
    return text


def parse_zone(name: str) -> str:
    """A time zone's name.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError(f"{name[:40]!r} is no time zone: write IANA's name, such as UTC or Asia/Shanghai") from None
    return name


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has invisible characters")
    return text


Only = Annotated[str, Field(max_length=256), AfterValidator(_plain)]
"""The one value that counts; empty: requests without one."""


class UsageAsk(BaseModel):
    """Which requests count (those for which all that is given holds), and by what they are added up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group_by: Annotated[
        str,
        Field(min_length=1, max_length=200, description=f"one or several, with commas: {', '.join(Dimension)}"),
        AfterValidator(_dimensions),
    ] = ",".join(DEFAULT_BY)
    since: Annotated[date, Field(description="first day")] | None = None
    until: Annotated[date, Field(description="last day")] | None = None
    tz: Annotated[
        str,
        Field(max_length=64, description="time zone of days and hours, as IANA names it"),
        AfterValidator(parse_zone),
    ] = "UTC"
    key_id: Only | None = None
    org_id: Only | None = None
    team_id: Only | None = None
    user_id: Only | None = None
    tag: Only | None = None
    model: Annotated[Only, Field(description="the name that callers give")] | None = None
    served_model: Annotated[Only, Field(description="the name at the engine")] | None = None
    route: Only | None = None
    upstream: Only | None = None
    status: Only | None = None
    reason: Only | None = None
    order: Annotated[Order, Field(description="labels, or the largest first; within each hour or day")] = Order.LABELS
    limit: Annotated[int, Field(ge=1, le=MAX_LINES)] = 1000
    cursor: Annotated[int, Field(ge=0, le=10**9, description="next_cursor of the page before")] = 0

    @property
    def by(self) -> tuple[Dimension, ...]:
        """The dimensions."""
        return parse_dimensions(self.group_by)

    def question(self) -> Question:
        """The same for the store: for one line more than asked for, which tells whether a page follows."""
        only = tuple(
            (dimension, value)
            for dimension in Dimension
            if not dimension.is_time and (value := getattr(self, dimension.field)) is not None
        )
        return Question(
            by=self.by,
            since=self._begin(self.since),
            until=self._begin(self.until, days=1),
            zone=self.tz,
            only=only,
            order=self.order,
            limit=self.limit + 1,
            offset=self.cursor,
        )

    def _begin(self, day: date | None, *, days: int = 0) -> float | None:
        """The Unix time at which a day, or one some days after it, begins in the zone."""
        if day is None:
            return None
        if not 1970 <= day.year <= 9000:  # what lies outside has no rows, and not every zone
            return datetime(min(max(day.year, 1970), 9000), 1, 1, tzinfo=UTC).timestamp()
        return datetime.combine(day + timedelta(days=days), time(), ZoneInfo(self.tz)).timestamp()


class UsageFormat(StrEnum):
    """How an answer is written."""

    JSON = "json"
    CSV = "csv"
