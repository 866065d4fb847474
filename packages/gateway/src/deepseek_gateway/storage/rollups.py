"""Hourly sums of the ledger, made again whenever an hour has new rows, so that old months need not be read row by row.

Whoever writes rows marks their hours in the same transaction. A job makes the sums of marked hours that are over, and
takes the marks away if they are still those that it saw before it read the rows: what comes in between leaves a mark
that makes the job come again. So sums without a mark are those of the rows, whoever dies when.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from deepseek_gateway.storage.database import Database, Row, Transaction
from deepseek_gateway.storage.statistics import MEASURED, bin_of, of_finished
from deepseek_gateway.storage.usage import ROLLUPS, ROW_SUMS
from deepseek_gateway.usage.question import SUMS
from deepseek_gateway.usage.zones import HOUR_S

_MARK = (
    "INSERT INTO usage_marks (hour, writer, stamp) VALUES (:hour, :writer, :stamp) "
    "ON CONFLICT (hour, writer) DO UPDATE SET stamp = excluded.stamp"
)
_BINS = ("measured", "bin", "requests")
_MARKED = "SELECT DISTINCT hour FROM usage_marks WHERE hour < :until ORDER BY hour LIMIT :limit"


class HourChangedError(Exception):
    """Rows came to an hour while its sums were made: its marks are there, so it is its turn again."""


@dataclass(frozen=True, slots=True)
class HourMarks:
    """Marks of one process. Others' are theirs, so that no writer waits for another."""

    writer: str = field(default_factory=lambda: secrets.token_hex(6))
    _stamps: Callable[[], int] = field(default_factory=lambda: count(1).__next__)

    def set(self, transaction: Transaction, moments: Iterable[float]) -> None:
        """Mark the hours of rows, within the transaction that writes them."""
        for hour in sorted({int(moment // HOUR_S) for moment in moments}):
            transaction.write(_MARK, {"hour": hour, "writer": self.writer, "stamp": self._stamps()})


@dataclass(frozen=True, slots=True)
class RollupTable:
    """The sums of hours. Hours are counted from 1970, in UTC."""

    database: Database

    def due(self, until: int, limit: int = 1_000_000) -> list[int]:
        """Marked hours before an hour, the oldest first."""
        return [int(hour) for (hour,) in self.database.read(_MARKED, {"until": until, "limit": limit})]

    def roll(self, hour: int) -> bool:
        """Make the sums of an hour; False when rows came meanwhile, and the hour stays marked."""
        marks = self.database.read("SELECT writer, stamp FROM usage_marks WHERE hour = :hour", {"hour": hour})
        is_kept = hour >= self.floor()
        sums = {table: self._sums(columns, hour) for table, columns in ROLLUPS.items()} if is_kept else {}
        bins = self._bins(hour) if is_kept else []
        try:
            with self.database.transaction() as transaction:
                self._unmark(transaction, hour, marks)
                # Its rows may have been deleted meanwhile: then the sums that are there stay.
                _go_on(not is_kept or hour >= self.floor())
                for table, rows in sums.items():
                    _replace(transaction, table, (*ROLLUPS[table], *SUMS), hour, rows)
                if is_kept:
                    _replace(transaction, "usage_latency_hours", _BINS, hour, bins)
        except HourChangedError:
            return False
        return True

    def mark_all(self, since: int, until: int) -> int:
        """Mark all hours in [since, until) that have rows or sums; gives how many. `roll` then makes them again."""
        hour_of = self.database.floor(f"created / {HOUR_S}")
        within = "hour >= :since AND hour < :until"
        times = {"since": max(since, self.floor()), "until": until}
        seconds = {"since_s": times["since"] * HOUR_S, "until_s": until * HOUR_S}
        found = self.database.report(
            f"""SELECT DISTINCT {hour_of} FROM ledger WHERE created >= :since_s AND created < :until_s
            UNION SELECT DISTINCT hour FROM usage_hours WHERE {within}
            UNION SELECT DISTINCT hour FROM usage_key_hours WHERE {within}""",  # noqa: S608  fixed texts
            {**times, **seconds},
            timeout_s=600.0,
        )
        marks = HourMarks()
        with self.database.transaction() as transaction:
            marks.set(transaction, (float(hour) * HOUR_S for (hour,) in found))
        return len(found)

    def floor(self) -> int:
        """The first hour whose rows were not deleted."""
        return int(self.database.read("SELECT hour FROM usage_floor")[0][0])

    def prune(self, hour: int) -> int | None:
        """Delete the rows of an hour, the oldest that has any; gives how many rows.

        None when there are older ones, or the sums are not those of the rows: then nothing is deleted.
        """
        times = {"since": hour * HOUR_S, "until": (hour + 1) * HOUR_S}
        older = "SELECT 1 FROM ledger WHERE created >= :floor AND created < :since LIMIT 1"
        sums = "SELECT coalesce(sum(requests), 0) FROM usage_hours WHERE hour = :hour"
        try:
            with self.database.transaction() as transaction:
                _go_on(not transaction.read(older, {"floor": self.floor() * HOUR_S, **times}))
                # A mark may be of a corrected row, which no count would show.
                _go_on(not transaction.read("SELECT 1 FROM usage_marks WHERE hour = :hour LIMIT 1", {"hour": hour}))
                known = int(transaction.read(sums, {"hour": hour})[0][0])
                deleted = transaction.write("DELETE FROM ledger WHERE created >= :since AND created < :until", times)
                _go_on(deleted == known)
                transaction.write("UPDATE usage_floor SET hour = :hour WHERE hour < :hour", {"hour": hour + 1})
        except HourChangedError:
            return None
        return deleted

    def hours_of_rows(self, until: int) -> list[int]:
        """Hours before an hour that have rows, from the floor on."""
        rows = self.database.report(
            f"SELECT DISTINCT {self.database.floor(f'created / {HOUR_S}')} AS hour FROM ledger "  # noqa: S608  a number
            "WHERE created >= :since AND created < :until ORDER BY hour",
            {"since": self.floor() * HOUR_S, "until": until * HOUR_S},
            timeout_s=600.0,
        )
        return [int(hour) for (hour,) in rows]

    def _sums(self, columns: Sequence[str], hour: int) -> list[Row]:
        values = ", ".join(f"coalesce({name}, '')" for name in columns)
        groups = ", ".join(str(at) for at in range(1, len(columns) + 1))
        return self.database.report(
            f"SELECT {values}, {', '.join(ROW_SUMS)} FROM ledger "  # noqa: S608  fixed names
            f"WHERE created >= :since AND created < :until GROUP BY {groups}",
            {"since": hour * HOUR_S, "until": (hour + 1) * HOUR_S},
            timeout_s=60.0,
        )

    def _bins(self, hour: int) -> list[Row]:
        """How many finished requests of an hour lie in each bin of latency."""
        parts = [
            f"SELECT '{measured}' AS measured, {bin_of(measured)} AS bin, count(*) AS requests FROM ledger "  # noqa: S608  as above
            f"WHERE created >= :since AND created < :until AND {' AND '.join(of_finished(measured))} GROUP BY bin"
            for measured in MEASURED
        ]
        times = {"since": hour * HOUR_S, "until": (hour + 1) * HOUR_S}
        return self.database.report(" UNION ALL ".join(parts), times, timeout_s=60.0)

    def _unmark(self, transaction: Transaction, hour: int, marks: Sequence[Row]) -> None:
        for writer, stamp in marks:
            values = {"hour": hour, "writer": writer, "stamp": stamp}
            sql = "DELETE FROM usage_marks WHERE hour = :hour AND writer = :writer AND stamp = :stamp"
            _go_on(transaction.write(sql, values) == 1)


def _go_on(is_so: bool) -> None:
    if not is_so:
        raise HourChangedError


def _replace(transaction: Transaction, table: str, names: Sequence[str], hour: int, rows: Sequence[Row]) -> None:
    transaction.write(f"DELETE FROM {table} WHERE hour = :hour", {"hour": hour})  # noqa: S608  a fixed name
    columns, marks = ", ".join(names), ", ".join(f":{name}" for name in names)
    sql = f"INSERT INTO {table} (hour, {columns}) VALUES (:hour, {marks})"  # noqa: S608  fixed names
    values = [{"hour": hour, **dict(zip(names, map(_plain, row), strict=True))} for row in rows]
    if values:
        transaction.write_many(sql, values)


def _plain(value: object) -> object:
    # PostgreSQL's sums are decimals.
    return value if isinstance(value, str) else int(str(value))
