"""What the ledger adds up to: over time, and by any dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.ledger import DAY_S, day_text

BIN_BOUNDS_MS = tuple(2 ** (step / 2) for step in range(40))
"""Upper bounds of the bins that latencies are counted in: 1 ms to 12 minutes, each 1.41 times the one before."""

MAX_LINES = 10_000
"""Lines of one breakdown; the largest come first."""


class Dimension(StrEnum):
    """What usage can be added up by."""

    DAY = "day"
    KEY = "key"
    ORG = "org"
    TEAM = "team"
    USER = "user"
    MODEL = "model"
    ROUTE = "route"
    STATUS = "status"
    REASON = "reason"
    UPSTREAM = "upstream"


_NAMED = {
    Dimension.KEY: ("api_keys", "public_id"),
    Dimension.ORG: ("orgs", "id"),
    Dimension.TEAM: ("teams", "id"),
    Dimension.USER: ("users", "id"),
}
"""Dimensions whose values are ids, and where their names are."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What happened in one stretch of time, of one status; `number` counts stretches from 1970."""

    number: int
    status: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano: int


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Totals of one combination of dimension values."""

    labels: tuple[str, ...]
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_nano: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Requests created in [since, until), of one key and one model if given, added up by one or two dimensions."""

    since: float
    until: float
    by: tuple[Dimension, ...]
    key_id: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class StatisticsTable:
    """Reads that add up many rows, each within a range of the ledger's index."""

    database: Database

    def slots(self, since: float, until: float, slot_s: int) -> list[Slot]:
        """Totals by stretch of time and status."""
        rows = self.database.report(
            f"""SELECT {self.database.floor(f"created / {slot_s:d}")} AS slot, status, count(*),
                sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(cost_nano)
            FROM ledger WHERE created >= :since AND created < :until GROUP BY slot, status""",  # noqa: S608  an int
            {"since": since, "until": until},
        )
        return [Slot(int(slot), status, *map(int, sums)) for slot, status, *sums in rows]

    def bins(
        self, column: Literal["latency_ms", "ttft_ms"], since: float, until: float, slot_s: int
    ) -> dict[int, dict[int, int]]:
        """How many finished requests of each stretch of time lie in each bin of `BIN_BOUNDS_MS`."""
        cases = " ".join(f"WHEN {column} <= {bound:.3f} THEN {at}" for at, bound in enumerate(BIN_BOUNDS_MS))
        rows = self.database.report(
            f"""SELECT {self.database.floor(f"created / {slot_s:d}")} AS slot,
                CASE {cases} ELSE {len(BIN_BOUNDS_MS)} END AS bin, count(*)
            FROM ledger WHERE created >= :since AND created < :until AND status = 'finished' AND {column} IS NOT NULL
            GROUP BY slot, bin""",  # noqa: S608  numbers, and a name from a fixed set
            {"since": since, "until": until},
        )
        found: dict[int, dict[int, int]] = {}
        for slot, at, count in rows:
            found.setdefault(int(slot), {})[int(at)] = int(count)
        return found

    def breakdown(self, query: UsageQuery) -> list[UsageLine]:
        """Totals by the dimensions of a query; by day in order of days, else the largest first."""
        names = [f"d{at}" for at in range(len(query.by))]
        columns = ", ".join(f"{self._column(by)} AS {name}" for by, name in zip(query.by, names, strict=True))
        filters = {"key_id = :key_id": query.key_id, "model = :model": query.model}
        conditions = "".join(f" AND {condition}" for condition, value in filters.items() if value is not None)
        order = "d0, " if query.by[0] is Dimension.DAY else ""
        rows = self.database.report(
            f"""SELECT {columns}, count(*), sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END),
                sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(reasoning_tokens), sum(cost_nano)
            FROM ledger WHERE created >= :since AND created < :until{conditions}
            GROUP BY {", ".join(names)} ORDER BY {order}sum(prompt_tokens + completion_tokens) DESC, {", ".join(names)}
            LIMIT {MAX_LINES}""",  # noqa: S608  names from fixed sets
            {"since": query.since, "until": query.until, "key_id": query.key_id, "model": query.model},
        )
        width = len(query.by)
        return [UsageLine(_labels(query.by, row[:width]), *map(int, row[width:])) for row in rows]

    def names(self, by: Dimension, ids: Sequence[str]) -> dict[str, str]:
        """Names of keys or owners by their ids; what is not there any more has none."""
        if by not in _NAMED:
            return {}
        table, column = _NAMED[by]
        names: dict[str, str] = {}
        for at in range(0, len(ids), 500):  # SQLite takes 999 parameters where it is old
            values = {f"id{number}": key_id for number, key_id in enumerate(ids[at : at + 500])}
            marks = ", ".join(f":{name}" for name in values)
            sql = f"SELECT {column}, name FROM {table} WHERE {column} IN ({marks})"  # noqa: S608  fixed names
            names.update({str(found): str(name) for found, name in self.database.read(sql, values)})
        return names

    def _column(self, by: Dimension) -> str:
        columns = {
            Dimension.DAY: self.database.floor(f"created / {DAY_S}"),
            Dimension.KEY: "key_id",
            Dimension.ORG: "coalesce(org_id, '')",
            Dimension.TEAM: "coalesce(team_id, '')",
            Dimension.USER: "coalesce(user_id, '')",
            Dimension.MODEL: "coalesce(model, '')",
            Dimension.ROUTE: "route",
            Dimension.STATUS: "status",
            Dimension.REASON: "end_reason",
            Dimension.UPSTREAM: "coalesce(upstream, '')",
        }
        return columns[by]


def percentile(bins: dict[int, int], share: float) -> float | None:
    """The latency in ms below which a share of requests lies, between two bounds of its bin; None without requests."""
    total = sum(bins.values())
    if not total:
        return None
    wanted, seen = share * total, 0
    for at in sorted(bins):
        if seen + bins[at] >= wanted:
            low = BIN_BOUNDS_MS[at - 1] if at else 0.0
            high = BIN_BOUNDS_MS[min(at, len(BIN_BOUNDS_MS) - 1)]
            return low + (high - low) * (wanted - seen) / bins[at]
        seen += bins[at]
    return BIN_BOUNDS_MS[-1]


def _labels(by: Sequence[Dimension], values: Sequence[object]) -> tuple[str, ...]:
    return tuple(
        day_text(int(str(value))) if dimension is Dimension.DAY else str(value)
        for dimension, value in zip(by, values, strict=True)
    )
