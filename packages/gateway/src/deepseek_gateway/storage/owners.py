"""Which keys have ledger rows under which owners: an owner's rows are found by its keys."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from deepseek_gateway.ledger.records import LedgerRow
from deepseek_gateway.storage.database import Database, Transaction

Pair = tuple[str, str]
"""`org:ID`, `team:ID` or `user:ID`, and a key's public id."""

MAX_KNOWN = 300_000
"""Pairs that a process remembers to be in the table."""

_INSERT = "INSERT INTO ledger_owners (owner, key_id) VALUES (:owner, :key_id) ON CONFLICT (owner, key_id) DO NOTHING"


@dataclass(frozen=True, slots=True)
class OwnerTable:
    """Grows with the ledger's rows, and stays: a key may have had other owners before."""

    database: Database
    _known: set[Pair] = field(default_factory=set[Pair])

    def insert(self, transaction: Transaction, rows: Iterable[LedgerRow]) -> set[Pair]:
        """Note the owners of rows in the transaction that writes these; gives what to `remember` once that is over."""
        pairs = {pair for row in rows for pair in _pairs(row)} - self._known
        if pairs:
            # Sorted: two gateways that lock the same rows in the same order cannot wait for each other.
            transaction.write_many(_INSERT, [{"owner": owner, "key_id": key_id} for owner, key_id in sorted(pairs)])
        return pairs

    def remember(self, pairs: set[Pair]) -> None:
        """Pairs that are committed need not be written again."""
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known.update(pairs)

    def keys(self, owner: str, limit: int) -> list[str]:
        """Keys with rows under an owner."""
        sql = "SELECT key_id FROM ledger_owners WHERE owner = :owner LIMIT :limit"
        return [key_id for (key_id,) in self.database.read(sql, {"owner": owner, "limit": limit})]


def _pairs(row: LedgerRow) -> Iterable[Pair]:
    if row.org_id is not None:
        yield f"org:{row.org_id}", row.key_id
    if row.team_id is not None:
        yield f"team:{row.team_id}", row.key_id
    if row.user_id is not None:
        yield f"user:{row.user_id}", row.key_id
