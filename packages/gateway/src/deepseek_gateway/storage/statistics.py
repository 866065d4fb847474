"""What the ledger adds up to over time, for charts; `usage` adds up by any dimension."""

from dataclasses import dataclass
from typing import Literal

from deepseek_gateway.storage.database import Database

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
