"""What the ledger adds up to by any dimension: from hourly rollups where they have the answer, else from the rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from deepseek_gateway.errors import ApiError
from deepseek_gateway.storage.database import Database
from deepseek_gateway.usage.question import SUMS, Dimension, Order, Question, UsageLine
from deepseek_gateway.usage.zones import DAY_S, HOUR_S, Offsets, day_text, hour_text, offsets_of

ROW_SUMS: Final = (
    "count(*)",
    "sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END)",
    *(f"sum({name})" for name in SUMS[2:]),
)
"""`SUMS` of ledger rows."""

COLUMNS: Final = {
    Dimension.KEY: "key_id",
    Dimension.ORG: "org_id",
    Dimension.TEAM: "team_id",
    Dimension.USER: "user_id",
    Dimension.MODEL: "model",
    Dimension.SERVED_MODEL: "served_model",
    Dimension.ROUTE: "route",
    Dimension.UPSTREAM: "upstream",
    Dimension.STATUS: "status",
    Dimension.REASON: "end_reason",
}
"""Columns of the ledger, and of the rollups that have them."""

_FREE: Final = frozenset({Dimension.HOUR, Dimension.DAY})
ROLLUPS: Final = {
    "usage_hours": ("org_id", "model", "served_model", "route", "upstream", "status", "end_reason"),
    "usage_key_hours": ("key_id", "org_id", "team_id", "user_id", "model", "served_model", "status"),
}
"""Tables of rollups and their dimensions, the smaller first."""

_NAMES: Final = {
    Dimension.KEY: ("api_keys", "public_id"),
    Dimension.ORG: ("orgs", "id"),
    Dimension.TEAM: ("teams", "id"),
    Dimension.USER: ("users", "id"),
}
_ORDERS: Final = {
    Order.TOKENS: "sum(prompt_tokens + completion_tokens) DESC",
    Order.REQUESTS: "sum(requests) DESC",
    Order.COST: "sum(cost_nano) DESC",
}
_FLOOR: Final = "(SELECT hour FROM usage_floor)"


@dataclass(frozen=True, slots=True)
class UsageTable:
    """Answers questions. The rows that are newer than their hour's rollup are read themselves: no answer is behind."""

    database: Database

    def answer(self, question: Question, *, timeout_s: float = 10.0) -> list[UsageLine]:
        """The lines of an answer.

        Raises:
            ApiError: 422, only rows could answer, and these were deleted.
            StoreSlowError: it takes longer than `timeout_s`.
        """
        oldest, newest = self._extent()
        since = oldest if question.since is None else max(question.since, oldest)
        until = newest if question.until is None else min(question.until, newest)
        if since >= until:
            return []
        plan = _Plan(self.database, question, offsets_of(question.zone, int(since), int(until) + 1), since, until)
        read_from = [since] if plan.rollup is None else [at for at in (since, until) if at % HOUR_S]
        if read_from:
            self._check_rows(min(read_from))
        rows = self.database.report(plan.sql(), plan.values(), timeout_s=timeout_s)
        width = len(question.by)
        return [UsageLine(_labels(question.by, row[:width]), *map(int, row[width:])) for row in rows]

    def names(self, by: Dimension, ids: Sequence[str]) -> dict[str, str]:
        """Names of keys or owners by their ids; what is not there any more has none."""
        if by not in _NAMES:
            return {}
        table, column = _NAMES[by]
        names: dict[str, str] = {}
        for at in range(0, len(ids), 500):  # SQLite takes 999 parameters where it is old
            values = {f"id{number}": key_id for number, key_id in enumerate(ids[at : at + 500])}
            marks = ", ".join(f":{name}" for name in values)
            sql = f"SELECT {column}, name FROM {table} WHERE {column} IN ({marks})"  # noqa: S608  fixed names
            names.update({str(found): str(name) for found, name in self.database.read(sql, values)})
        return names

    def names_in(self, by: Sequence[Dimension], lines: Iterable[UsageLine]) -> dict[str, str]:
        """Names of all that lines have ids of."""
        kept, names = list(lines), dict[str, str]()
        for at, dimension in enumerate(by):
            if dimension.is_named:
                names.update(self.names(dimension, sorted({line.labels[at] for line in kept} - {""})))
        return names

    def _extent(self) -> tuple[float, float]:
        """The whole hours of which anything is known: from the first one's beginning to the last one's end."""
        # Each by itself: of both in one, SQLite looks at every row.
        rows = self.database.read("SELECT (SELECT min(created) FROM ledger), (SELECT max(created) FROM ledger)")
        hours = self.database.read("SELECT (SELECT min(hour) FROM usage_hours), (SELECT max(hour) FROM usage_hours)")
        known = [
            *(value // HOUR_S for value in rows[0] if value is not None),
            *(hour for hour in hours[0] if hour is not None),
        ]
        return (min(known) * HOUR_S, (max(known) + 1) * HOUR_S) if known else (0.0, 0.0)

    def _check_rows(self, since: float) -> None:
        floor_s = int(self.database.read("SELECT hour FROM usage_floor")[0][0]) * HOUR_S
        if since < floor_s:
            day = datetime.fromtimestamp(floor_s, UTC).strftime("%Y-%m-%d %H:%M")
            message = (
                f"rows before {day} UTC were deleted, and their hourly sums have no answer to this: ask from then on, "
                "or without owners but an organisation, or without route, upstream and reason, in a zone of full hours"
            )
            raise ApiError(422, message, param="since", code="rows_deleted")


class _Plan:
    """The statement for a question: parts from rollups and rows, added up."""

    def __init__(self, database: Database, question: Question, offsets: Offsets, since: float, until: float) -> None:
        self._database, self._question, self._offsets = database, question, offsets
        self._since, self._until = since, until
        self._first_hour, self._end_hour = -int(-since // HOUR_S), int(until // HOUR_S)
        self._names = [f"d{at}" for at in range(len(question.by))]
        self.rollup = self._rollup()

    def values(self) -> dict[str, object]:
        """Parameters of the statement."""
        times = {"since": self._since, "until": self._until, "first": self._first_hour, "end": self._end_hour}
        edges = {"first_s": self._first_hour * HOUR_S, "end_s": self._end_hour * HOUR_S}
        only = {f"only_{dimension.value}": value for dimension, value in self._question.only}
        return {**times, **edges, **only}

    def sql(self) -> str:
        """The whole statement: one, so that it sees rows and rollups of one moment."""
        names = ", ".join(self._names)
        sums = ", ".join(f"sum({name})" for name in SUMS)
        is_by_time = self._question.by[0].is_time and self._question.order is not Order.LABELS
        largest = _ORDERS.get(self._question.order)
        order = ", ".join([*(["d0"] if is_by_time else []), *([largest] if largest else []), names])
        return (
            f"SELECT {names}, {sums} FROM ({' UNION ALL '.join(self._parts())}) AS parts "  # noqa: S608  fixed names
            f"GROUP BY {names} ORDER BY {order} LIMIT {self._question.limit:d} OFFSET {self._question.offset:d}"
        )

    def _parts(self) -> list[str]:
        if self.rollup is None:
            return [self._of_rows("ledger u", ["u.created >= :since", "u.created < :until"])]
        within = "hour >= :first AND hour < :end"
        marked = f"SELECT DISTINCT hour AS m FROM usage_marks WHERE {within} AND hour >= {_FLOOR}"  # noqa: S608  as above
        parts = [
            self._of_rollup(self.rollup, [f"u.{within.replace('AND ', 'AND u.')}", f"u.hour NOT IN ({marked})"]),
            # SQLite begins with what stands before CROSS JOIN: a few hours, each a range of the rows' index.
            self._of_rows(
                f"({marked}) AS fresh CROSS JOIN ledger u",
                [f"u.created >= fresh.m * {HOUR_S}", f"u.created < (fresh.m + 1) * {HOUR_S}"],
            ),
            self._of_rows(
                "ledger u", ["u.created >= :first_s", f"u.created < {_FLOOR} * {HOUR_S}", "u.created < :end_s"]
            ),
        ]
        if self._since < self._first_hour * HOUR_S:
            parts.append(self._of_rows("ledger u", ["u.created >= :since", "u.created < :first_s"]))
        if self._until > self._end_hour * HOUR_S:
            parts.append(self._of_rows("ledger u", ["u.created >= :end_s", "u.created < :until"]))
        return parts

    def _of_rows(self, source: str, conditions: Sequence[str]) -> str:
        return self._select(source, "u.created", ROW_SUMS, conditions, empty="IS NULL")

    def _of_rollup(self, table: str, conditions: Sequence[str]) -> str:
        sums = [f"sum({name})" for name in SUMS]
        return self._select(f"{table} u", f"u.hour * {HOUR_S}", sums, conditions, empty="= ''")

    def _select(self, source: str, moment: str, sums: Sequence[str], conditions: Sequence[str], *, empty: str) -> str:
        columns = ", ".join(
            f"{self._value(dimension, moment)} AS {name}"
            for dimension, name in zip(self._question.by, self._names, strict=True)
        )
        if Dimension.TAG in self._question.by:
            source += " LEFT JOIN key_tags t ON t.public_id = u.key_id"
        named = ", ".join(f"{value} AS {name}" for value, name in zip(sums, SUMS, strict=True))
        where = " AND ".join([*conditions, *(_only(*one, empty) for one in self._question.only)])
        groups = ", ".join(self._names)
        return f"SELECT {columns}, {named} FROM {source} WHERE {where} GROUP BY {groups}"  # noqa: S608  as above

    def _value(self, dimension: Dimension, moment: str) -> str:
        if dimension.is_time:
            length = DAY_S if dimension is Dimension.DAY else HOUR_S
            return self._database.floor(f"{self._offsets.local(moment)} / {length}")
        return f"coalesce({'t.tag' if dimension is Dimension.TAG else f'u.{COLUMNS[dimension]}'}, '')"

    def _rollup(self) -> str | None:
        """The smallest table of rollups that has the answer."""
        if not self._offsets.is_whole_hours or self._first_hour >= self._end_hour:
            return None
        needed = {
            "key_id" if dimension is Dimension.TAG else COLUMNS[dimension]
            for dimension in self._question.dimensions - _FREE
        }
        return next((table for table, columns in ROLLUPS.items() if needed <= set(columns)), None)


def _only(dimension: Dimension, value: str, empty: str) -> str:
    """The condition that a dimension has the value of the parameter `only_…`."""
    if dimension is Dimension.TAG:
        tags = "SELECT 1 FROM key_tags o WHERE o.public_id = u.key_id"
        return f"EXISTS ({tags} AND o.tag = :only_tag)" if value else f"NOT EXISTS ({tags})"
    column = f"u.{COLUMNS[dimension]}"
    return f"{column} = :only_{dimension.value}" if value else f"{column} {empty}"


def _labels(by: Sequence[Dimension], values: Sequence[object]) -> tuple[str, ...]:
    return tuple(
        _time_text(dimension, int(str(value))) if dimension.is_time else str(value)
        for dimension, value in zip(by, values, strict=True)
    )


def _time_text(dimension: Dimension, number: int) -> str:
    return day_text(number) if dimension is Dimension.DAY else hour_text(number)
