"""The table of what requests used."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deepseek_gateway.ledger.records import ROW_FIELDS, LedgerRow
from deepseek_gateway.storage.database import Database, Row, Transaction

DAY_S = 86400

_NAMES = ROW_FIELDS
_COLUMNS = ", ".join(_NAMES)
_MARKS = ", ".join(f":{name}" for name in _NAMES)
# The statements below hold only these names, never a caller's text.
_SELECT = f"SELECT {_COLUMNS} FROM ledger"  # noqa: S608
_INSERT = f"INSERT INTO ledger ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT (request_id, attempt) DO NOTHING"  # noqa: S608


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What one key used on one day (UTC, `2026-11-23`)."""

    key_id: str
    key_name: str
    day: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class LedgerTable:
    """One row an attempt that was served."""

    database: Database

    def insert(self, rows: Sequence[LedgerRow]) -> None:
        """Keep rows, all or none. A (request_id, attempt) that is there stays as it is: replays are harmless."""
        with self.database.transaction() as transaction:
            self.insert_in(transaction, rows)

    def insert_in(self, transaction: Transaction, rows: Sequence[LedgerRow]) -> None:
        """The same within a transaction."""
        transaction.write_many(_INSERT, [{**row.to_dict(), "stream": int(row.stream)} for row in rows])

    def rows(self, key_id: str | None = None) -> list[LedgerRow]:
        """Rows of one key or of all, the oldest first."""
        where = "" if key_id is None else "WHERE key_id = :key_id"
        return [_row(row) for row in self.database.read(f"{_SELECT} {where} ORDER BY created", {"key_id": key_id})]

    def tokens_since(self, since: float) -> dict[str, int]:
        """Tokens of each key from a Unix time on."""
        sql = (
            "SELECT key_id, sum(prompt_tokens + completion_tokens) FROM ledger WHERE created >= :since GROUP BY key_id"
        )
        return {key_id: int(tokens) for key_id, tokens in self.database.read(sql, {"since": since})}

    def usage(self, since: float | None, until: float | None, key_id: str | None) -> list[UsageTotal]:
        """Totals by key and day, for requests created in [since, until)."""
        given = {"ledger.created >= :since": since, "ledger.created < :until": until, "key_id = :key_id": key_id}
        conditions = [condition for condition, value in given.items() if value is not None]
        day = self.database.floor(f"ledger.created / {DAY_S}")
        rows = self.database.read(
            f"""SELECT key_id, coalesce(min(api_keys.name), ''), {day} AS day,
                count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens)
            FROM ledger LEFT JOIN api_keys ON public_id = key_id
            {"WHERE " if conditions else ""}{" AND ".join(conditions)}
            GROUP BY key_id, day ORDER BY day, key_id""",  # noqa: S608  no caller's text
            {"since": since, "until": until, "key_id": key_id},
        )
        return [UsageTotal(key, name, day_text(day), *map(int, sums)) for key, name, day, *sums in rows]


def day_text(day: int) -> str:
    """The date of a day that is counted from 1970-01-01, in UTC."""
    return datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y-%m-%d")


def _row(row: Row) -> LedgerRow:
    values: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    values["stream"] = bool(values["stream"])
    return LedgerRow(**values)
