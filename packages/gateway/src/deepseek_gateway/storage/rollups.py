"""Hourly sums of the ledger, made again whenever an hour has new rows, so that old months need not be read row by row.

Whoever writes rows marks their hours in the same transaction. A job makes the sums of marked hours that are over, and
takes the marks away if they are still those that it saw before it read the rows: what comes in between leaves a mark
that makes the job come again. So sums without a mark are those of the rows, whoever dies when.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from deepseek_gateway.storage.database import Database, Row, Transaction
from deepseek_gateway.storage.statistics import MEASURED, bin_of, of_finished
from deepseek_gateway.storage.usage import ROLLUPS, ROW_SUMS
from deepseek_gateway.usage.question import SUMS
from deepseek_gateway.usage.zones import HOUR_S

_MARK = (
    "INSERT INTO usage_marks (hour, writer, stamp) VALUES (:hour, :writer, :stamp) "
    "ON CONFLICT (hour, writer) DO UPDATE SET stamp = excluded.stamp"
)
_WITHIN = "created >= :since AND created < :until"
_UP_TO = "created >= :since AND created <= :last"
_PRUNE = "usage_prune"

FOLDED = 2000
"""Rows that one transaction deletes: others get their turn between two."""

_MARKED = "SELECT DISTINCT hour FROM usage_marks WHERE hour < :until ORDER BY hour LIMIT :limit"


_NAMES: Final = {
    **{table: (*columns, *SUMS) for table, columns in ROLLUPS.items()},
    "usage_latency_hours": ("measured", "bin", "requests"),
}
_TABLES: Final = (
    *((table, columns, ", ".join(f"sum({name})" for name in SUMS)) for table, columns in ROLLUPS.items()),
    ("usage_latency_hours", ("measured", "bin"), "sum(requests)"),
)
"""Tables of sums, what they are by, and what adds up several rows of the same."""


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
        times = {"since": hour * HOUR_S, "until": (hour + 1) * HOUR_S}
        sums = {table: self.database.report(sql, times, timeout_s=60.0) for table, sql in _OF_HOUR.items() if is_kept}
        try:
            with self.database.transaction() as transaction:
                self._unmark(transaction, hour, marks)
                # Its rows may have been deleted meanwhile: then the sums that are there stay.
                _go_on(not is_kept or hour >= self.floor())
                for table, rows in sums.items():
                    _replace(transaction, table, hour, rows)
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
        """Delete the rows of an hour, the oldest that has any, some thousand at a time; gives how many rows.

        First the hour's sums go, and all of its rows count as late ones. Then each transaction puts the sums of some
        rows in their place: answers are the same at each moment, whoever dies when, and no writer waits long. Rows that
        are left of an earlier time, or came later, are put to the sums that are there.

        None when there are older ones, or the sums are not those of the rows: then nothing is deleted.
        """
        try:
            with self.database.transaction() as transaction:
                transaction.lock(_PRUNE)
                if hour >= self.floor():
                    self._give_up_sums(transaction, hour)
        except HourChangedError:
            return None
        deleted, is_whole = 0, False
        while not is_whole:
            with contextlib.suppress(HourChangedError):  # a late row came in between: once more
                number, is_whole = self._fold(hour)
                deleted += number
        with self.database.transaction() as transaction:
            transaction.lock(_PRUNE)
            for table, names, values in _TABLES:
                groups = ", ".join(names)
                sql = f"SELECT {groups}, {values} FROM {table} WHERE hour = :hour GROUP BY {groups}"  # noqa: S608  as above
                _replace(transaction, table, hour, transaction.read(sql, {"hour": hour}))
        return deleted

    def _give_up_sums(self, transaction: Transaction, hour: int) -> None:
        times = {"since": hour * HOUR_S, "until": (hour + 1) * HOUR_S, "hour": hour, "floor": self.floor() * HOUR_S}
        older = "SELECT 1 FROM ledger WHERE created >= :floor AND created < :since LIMIT 1"
        _go_on(not transaction.read(older, times))
        # A mark may be of a corrected row, which no count would show.
        _go_on(not transaction.read("SELECT 1 FROM usage_marks WHERE hour = :hour LIMIT 1", times))
        known = transaction.read("SELECT coalesce(sum(requests), 0) FROM usage_hours WHERE hour = :hour", times)
        there = transaction.read("SELECT count(*) FROM ledger WHERE created >= :since AND created < :until", times)
        _go_on(int(known[0][0]) == int(there[0][0]))
        for table, _, _ in _TABLES:
            transaction.write(f"DELETE FROM {table} WHERE hour = :hour", times)  # noqa: S608  a fixed name
        transaction.write("UPDATE usage_floor SET hour = :hour + 1 WHERE hour <= :hour", times)

    def _fold(self, hour: int) -> tuple[int, bool]:
        """Put the sums of an hour's oldest rows in their place; gives how many, and whether these were the last."""
        times = {"since": hour * HOUR_S, "until": (hour + 1) * HOUR_S, "skip": FOLDED - 1}
        bound = "SELECT created FROM ledger WHERE created >= :since AND created < :until ORDER BY created"
        with self.database.transaction() as transaction:
            transaction.lock(_PRUNE)
            found = transaction.read(f"{bound} LIMIT 1 OFFSET :skip", times)
            within, times = (_UP_TO, {**times, "last": found[0][0]}) if found else (_WITHIN, times)
            folded = 0
            for table, sql in _sums_of(within).items():
                rows = transaction.read(sql, times)
                _insert(transaction, table, hour, rows)
                folded = sum(int(row[len(ROLLUPS[table])]) for row in rows) if table == "usage_hours" else folded
            _go_on(transaction.write(f"DELETE FROM ledger WHERE {within}", times) == folded)  # noqa: S608  fixed texts
        return folded, not found

    def hours_of_rows(self, until: int) -> list[int]:
        """Hours before an hour that have rows."""
        rows = self.database.report(
            f"SELECT DISTINCT {self.database.floor(f'created / {HOUR_S}')} AS hour FROM ledger "  # noqa: S608  a number
            "WHERE created < :until ORDER BY hour",
            {"until": until * HOUR_S},
            timeout_s=600.0,
        )
        return [int(hour) for (hour,) in rows]

    def _unmark(self, transaction: Transaction, hour: int, marks: Sequence[Row]) -> None:
        for writer, stamp in marks:
            values = {"hour": hour, "writer": writer, "stamp": stamp}
            sql = "DELETE FROM usage_marks WHERE hour = :hour AND writer = :writer AND stamp = :stamp"
            _go_on(transaction.write(sql, values) == 1)


def _go_on(is_so: bool) -> None:
    if not is_so:
        raise HourChangedError


def _sums_of(within: str) -> dict[str, str]:
    """The statement that adds up rows for each table of sums, in the order of its columns."""
    found: dict[str, str] = {}
    for table, columns in ROLLUPS.items():
        values = ", ".join(f"coalesce({name}, '')" for name in columns)
        groups = ", ".join(str(at) for at in range(1, len(columns) + 1))
        found[table] = f"SELECT {values}, {', '.join(ROW_SUMS)} FROM ledger WHERE {within} GROUP BY {groups}"  # noqa: S608
    found["usage_latency_hours"] = " UNION ALL ".join(
        f"SELECT '{measured}' AS measured, {bin_of(measured)} AS bin, count(*) AS requests FROM ledger "  # noqa: S608
        f"WHERE {within} AND {' AND '.join(of_finished(measured))} GROUP BY bin"
        for measured in MEASURED
    )
    return found


def _replace(transaction: Transaction, table: str, hour: int, rows: Sequence[Row]) -> None:
    transaction.write(f"DELETE FROM {table} WHERE hour = :hour", {"hour": hour})  # noqa: S608  a fixed name
    _insert(transaction, table, hour, rows)


def _insert(transaction: Transaction, table: str, hour: int, rows: Sequence[Row]) -> None:
    names = _NAMES[table]
    columns, marks = ", ".join(names), ", ".join(f":{name}" for name in names)
    sql = f"INSERT INTO {table} (hour, {columns}) VALUES (:hour, {marks})"  # noqa: S608  fixed names
    values = [{"hour": hour, **dict(zip(names, map(_plain, row), strict=True))} for row in rows]
    if values:
        transaction.write_many(sql, values)


def _plain(value: object) -> object:
    # PostgreSQL's sums are decimals.
    return value if isinstance(value, str) else int(str(value))


_OF_HOUR: Final = _sums_of(_WITHIN)
