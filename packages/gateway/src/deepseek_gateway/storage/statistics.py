"""What the ledger adds up to over time, for charts; `usage` adds up by any dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from deepseek_gateway.storage.database import Database
from deepseek_gateway.storage.whole_hours import FRESH, OF_FRESH, OF_LATE, OF_SUMS, hours
from deepseek_gateway.usage.zones import HOUR_S

BIN_BOUNDS_MS = tuple(2 ** (step / 2) for step in range(40))
"""Upper bounds of the bins that latencies are counted in: 1 ms to 12 minutes, each 1.41 times the one before."""


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


Measured = Literal["latency_ms", "ttft_ms"]
MEASURED: Final[tuple[Measured, ...]] = get_args(Measured)
_SUMS = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nano")


@dataclass(frozen=True, slots=True)
class StatisticsTable:
    """Reads that add up many rows; of stretches of whole hours, hourly sums wherever these are made."""

    database: Database

    def slots(self, since: float, until: float, slot_s: int) -> list[Slot]:
        """Totals by stretch of time and status."""
        sums = ", ".join(f"sum(u.{name}) AS {name}" for name in _SUMS)
        parts = self._parts(
            "usage_hours u", f"u.status, sum(u.requests) AS requests, {sums}",
            f"u.status, count(*) AS requests, {sums}", "slot, u.status", since, until, slot_s,
        )  # fmt: skip
        together = ", ".join(f"sum({name})" for name in ("requests", *_SUMS))
        rows = self.database.report(
            f"SELECT slot, status, {together} FROM ({parts}) AS parts GROUP BY slot, status",  # noqa: S608  fixed names
            _values(since, until),
        )
        return [Slot(int(slot), status, *map(int, added)) for slot, status, *added in rows]

    def bins(self, measured: Measured, since: float, until: float, slot_s: int) -> dict[int, dict[int, int]]:
        """How many finished requests of each stretch of time lie in each bin of `BIN_BOUNDS_MS`."""
        parts = self._parts(
            "usage_latency_hours u", "u.bin AS bin, sum(u.requests) AS requests",
            f"{bin_of(measured)} AS bin, count(*) AS requests", "slot, bin", since, until, slot_s,
            of_sums=("u.measured = :measured",), of_rows=of_finished(measured),
        )  # fmt: skip
        rows = self.database.report(
            f"SELECT slot, bin, sum(requests) FROM ({parts}) AS parts GROUP BY slot, bin",  # noqa: S608  fixed names
            {**_values(since, until), "measured": measured},
        )
        found: dict[int, dict[int, int]] = {}
        for slot, at, count in rows:
            found.setdefault(int(slot), {})[int(at)] = int(count)
        return found

    def _parts(
        self, table: str, summed: str, counted: str, groups: str, since: float, until: float, slot_s: int, *,
        of_sums: Sequence[str] = (), of_rows: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Selects of slots: from sums and from rows, or from rows alone where hours are too coarse."""

        def of(source: str, moment: str, values: str, conditions: Sequence[str]) -> str:
            slot = self.database.floor(f"{moment} / {slot_s:d}")
            where = " AND ".join(conditions)
            return f"SELECT {slot} AS slot, {values} FROM {source} WHERE {where} GROUP BY {groups}"  # noqa: S608  as above

        if slot_s % HOUR_S or since % HOUR_S or until % HOUR_S:
            return of("ledger u", "u.created", counted, ["u.created >= :since", "u.created < :until", *of_rows])
        return " UNION ALL ".join(
            (
                of(table, f"u.hour * {HOUR_S}", summed, [*OF_SUMS, *of_sums]),
                of(FRESH, "u.created", counted, [*OF_FRESH, *of_rows]),
                of("ledger u", "u.created", counted, [*OF_LATE, *of_rows]),
            )
        )


def bin_of(measured: Measured) -> str:
    """SQL for the number of the bin in which a row's latency lies."""
    cases = " ".join(f"WHEN {measured} <= {bound:.3f} THEN {at}" for at, bound in enumerate(BIN_BOUNDS_MS))
    return f"CASE {cases} ELSE {len(BIN_BOUNDS_MS)} END"


def of_finished(measured: Measured) -> tuple[str, ...]:
    """Conditions on rows whose latency counts."""
    return "status = 'finished'", f"{measured} IS NOT NULL"


def _values(since: float, until: float) -> dict[str, object]:
    return {"since": since, "until": until, **hours(int(since // HOUR_S), int(until // HOUR_S))}


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
