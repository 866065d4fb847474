"""The table of what requests used."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepseek_gateway.ledger.records import ROW_FIELDS, LedgerRow
from deepseek_gateway.limits.rules import Scope, Unit
from deepseek_gateway.storage.database import Database, Row, Transaction
from deepseek_gateway.storage.owners import OwnerTable, Pair
from deepseek_gateway.storage.rollups import HourMarks
from deepseek_gateway.storage.spent import spent

_NAMES = ROW_FIELDS
_COLUMNS = ", ".join(_NAMES)
_MARKS = ", ".join(f":{name}" for name in _NAMES)
# The statements below hold only these names, never a caller's text.
_SELECT = f"SELECT {_COLUMNS} FROM ledger"  # noqa: S608
_INSERT = f"INSERT INTO ledger ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT (request_id, attempt) DO NOTHING"  # noqa: S608
_PAID_AT_A_TIME = 50


@dataclass(frozen=True, slots=True)
class LedgerTable:
    """One row an attempt that was served."""

    database: Database
    owners: OwnerTable
    marks: HourMarks = field(default_factory=HourMarks)

    def insert(self, rows: Sequence[LedgerRow]) -> set[Pair]:
        """Keep rows, all or none, and book what they cost to prepaid balances.

        A (request_id, attempt) that is there stays as it is, and costs nothing again: replays are harmless. Gives what
        `owners` may `remember` once the outermost transaction is over.
        """
        free = [row for row in rows if not row.cost_nano]
        paid = [row for row in rows if row.cost_nano]
        paid_by: Counter[str] = Counter()
        with self.database.transaction() as transaction:
            if free:
                transaction.write_many(_INSERT, [_values(row) for row in free])
            for at in range(0, len(paid), _PAID_AT_A_TIME):
                paid_by += _insert_paid(transaction, paid[at : at + _PAID_AT_A_TIME])
            pairs = self.owners.insert(transaction, rows)
            self.marks.set(transaction, (row.created for row in rows))
            for account in sorted(paid_by):  # in one order everywhere, so that two gateways never wait for each other
                transaction.write(
                    "UPDATE balances SET spent_nano = spent_nano + :cost WHERE account = :account",
                    {"account": account, "cost": paid_by[account]},
                )
        return pairs

    def rows(self, key_id: str | None = None) -> list[LedgerRow]:
        """Rows of one key or of all, the oldest first."""
        where = "" if key_id is None else "WHERE key_id = :key_id"
        return [_row(row) for row in self.database.read(f"{_SELECT} {where} ORDER BY created", {"key_id": key_id})]

    def spent(self, scope: Scope, unit: Unit, start: float, end: float) -> int:
        """Tokens, or money in nano-units, of the requests of a scope that were admitted in [start, end)."""
        return spent(self.database, scope, unit, start, end)


def _values(row: LedgerRow) -> dict[str, Any]:
    return {**row.to_dict(), "stream": int(row.stream)}


def _insert_paid(transaction: Transaction, rows: Sequence[LedgerRow]) -> Counter[str]:
    """Insert rows; gives what those that are new cost each account."""
    marks = ", ".join(f"({', '.join(f':{name}_{at}' for name in _NAMES)})" for at in range(len(rows)))
    values = {f"{name}_{at}": value for at, row in enumerate(rows) for name, value in _values(row).items()}
    sql = (
        f"INSERT INTO ledger ({_COLUMNS}) VALUES {marks} "  # noqa: S608  names and marks only
        "ON CONFLICT (request_id, attempt) DO NOTHING RETURNING request_id, attempt"
    )
    new = {(request_id, int(attempt)) for request_id, attempt in transaction.read(sql, values)}
    spent: Counter[str] = Counter()
    for row in rows:
        if (row.request_id, row.attempt) in new:
            spent[row.account] += row.cost_nano
    return spent


def _row(row: Row) -> LedgerRow:
    values: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    values["stream"] = bool(values["stream"])
    return LedgerRow(**values)
