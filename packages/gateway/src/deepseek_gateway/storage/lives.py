"""The table of requests' lives: found by request id, checked against the audit log."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import orjson

from deepseek_gateway.audit.actor import GATEWAY, Actor
from deepseek_gateway.audit.chain import Draft, Entry, Fault, json_text
from deepseek_gateway.audit.life import NODE, Life, batch_digest
from deepseek_gateway.ledger.records import Status
from deepseek_gateway.storage.audit import LOCK, AuditTable
from deepseek_gateway.storage.database import Database, Row, Transaction
from deepseek_gateway.storage.newest import SELECT_LIVES, LifeFilter, newest_lives
from deepseek_gateway.storage.owners import OwnerTable

ACTION = "requests.keep"
PURGE = "requests.purge"

Outcome = Literal["finished", "cancelled", "failed", "refused"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
_TOLD: Final[dict[Outcome, str]] = {
    "refused": '%"ledger":null,%',
    **{status: f'%"status":"{status}",%' for status in get_args(Status)},
}
"""What stands in the JSON of such lives only: quotes within its texts have a backslash."""
_INSERT = """INSERT INTO request_lives
    (request_id, client_request_id, key_id, org_id, created, life, hash, batch, position, apart)
    VALUES (:request_id, :client_request_id, :key_id, :org_id, :created, :life, :hash, :batch, :position, :apart)
    ON CONFLICT (request_id) DO NOTHING"""


@dataclass(frozen=True, slots=True)
class LifeTable:
    """Lives. A flush is a batch, which the audit log holds as one entry with the digest of the lives' hashes."""

    database: Database
    owners: OwnerTable

    def insert(
        self, transaction: Transaction, audit: AuditTable, lives: Sequence[Life], refused: Sequence[Life] = ()
    ) -> None:
        """Keep lives as a batch; those that are there stay in theirs. The last thing in a transaction.

        `lives` are of requests that the ledger has, `refused` of those that it has not.
        """
        if not lives and not refused:
            return
        transaction.lock(LOCK)
        batch = transaction.read("SELECT sequence FROM audit_head")[0][0] + 1
        transaction.write_many(
            _INSERT,
            [
                {
                    "request_id": life.request_id,
                    "client_request_id": life.client_request_id,
                    "key_id": life.key_id,
                    "org_id": life.org_id,
                    "created": life.created,
                    "life": life.life,
                    "hash": life.hash,
                    "batch": batch,
                    "position": position,
                    "apart": None if position < len(lives) else 1,
                }
                for position, life in enumerate((*lives, *refused))
            ],
        )
        sql = "SELECT hash FROM request_lives WHERE batch = :batch ORDER BY position"
        hashes = [row[0] for row in transaction.read(sql, {"batch": batch})]
        if hashes:
            after = json_text({"count": len(hashes), "node": NODE, "sha256": batch_digest(hashes)})
            audit.append(transaction, [Draft(str(GATEWAY), ACTION, f"{len(hashes)} requests", after=after)])

    def find(self, request_id: str) -> Life | None:
        """The life of a request."""
        rows = self.database.read(f"{SELECT_LIVES} WHERE request_id = :request_id", {"request_id": request_id})
        return Life(*rows[0]) if rows else None

    def find_by_client(self, client_request_id: str, limit: int) -> list[Life]:
        """Requests that callers gave a name, the newest first."""
        sql = f"{SELECT_LIVES} WHERE client_request_id = :name ORDER BY created DESC LIMIT :limit"
        return [Life(*row) for row in self.database.read(sql, {"name": client_request_id, "limit": limit})]

    def listing(
        self,
        key_id: str | None,
        org_id: str | None,
        before: float | None,
        limit: int,
        *,
        outcome: Outcome | None = None,
    ) -> list[Life]:
        """Lives of a key, of an organisation or of all, the newest first.

        `before` is the `created` of the page before's last one. Only the lives themselves tell their outcome: of a rare
        one many are read.

        Raises:
            StoreSlowError: too many.
        """
        told = None if outcome is None else _TOLD[outcome]
        wanted = LifeFilter(key_id, org_id, before, told, None if outcome == "refused" else outcome)
        return newest_lives(self.database, self.owners, wanted, limit)

    def first_fault(self, entries: Iterator[Entry]) -> tuple[int, Fault | None]:
        """Check lives against the audit log's entries; gives how many are sound, and the first fault."""
        count, last = 0, self._floor()
        for entry in entries:
            if entry.action != ACTION or entry.sequence <= last:
                continue
            fault, number = self._fault_of(entry, last)
            if fault is not None:
                return count, fault
            count, last = count + number, entry.sequence
        rows = self.database.read(
            """SELECT request_id, batch FROM request_lives
            WHERE batch > (SELECT sequence FROM audit_head) ORDER BY batch LIMIT 1"""
        )
        return count, _stray(*rows[0]) if rows else None

    def purge(self, audit: AuditTable, until: float, limit: int, actor: Actor = GATEWAY) -> int:
        """Delete whole batches that are older than a Unix time, `limit` lives or a few more; gives how many lives.

        The audit log keeps the batches' digests and says up to which batch lives were deleted.
        """
        with self.database.transaction() as transaction:
            newest = _last_batch(transaction, until, limit)
            if newest is None:
                return 0
            entry = audit.record(transaction, actor, PURGE, f"batch {newest}", after={"until": until, "batch": newest})
            transaction.write(
                "INSERT INTO request_lives_floor (batch, entry) VALUES (:batch, :entry)",
                {"batch": newest, "entry": entry.sequence},
            )
            return transaction.write("DELETE FROM request_lives WHERE batch <= :batch", {"batch": newest})

    def _floor(self) -> int:
        return self.database.read("SELECT coalesce(max(batch), 0) FROM request_lives_floor")[0][0]

    def _fault_of(self, entry: Entry, last: int) -> tuple[Fault | None, int]:
        sql = (
            "SELECT request_id, client_request_id, key_id, org_id, created, life, hash, batch FROM request_lives "
            "WHERE batch > :last AND batch <= :batch ORDER BY batch, position"
        )
        rows = self.database.read(sql, {"last": last, "batch": entry.sequence})
        at, told = entry.sequence, cast("dict[str, Any]", orjson.loads(entry.after or "{}"))
        for *columns, kept_hash, batch in rows:
            life = Life(*columns)
            if batch != at:
                return _stray(life.request_id, batch), 0
            if life.hash != kept_hash or not life.fits:
                return Fault(at, "changed", f"the life of request {life.request_id} (batch {at}) was changed"), 0
        if len(rows) < told["count"]:
            missing = told["count"] - len(rows)
            return Fault(at, "removed", f"{missing} of {told['count']} lives of batch {at} are gone"), 0
        if len(rows) > told["count"]:
            return Fault(at, "inserted", f"batch {at} has {len(rows)} lives instead of {told['count']}"), 0
        if batch_digest([row[-2] for row in rows]) != told["sha256"]:
            return Fault(at, "rewritten", f"the lives of batch {at} are not those that were written"), 0
        return None, len(rows)


def _stray(request_id: str, batch: int) -> Fault:
    return Fault(batch, "inserted", f"request {request_id} is of no batch in the log")


def _last_batch(transaction: Transaction, until: float, limit: int) -> int | None:
    """The last of the oldest batches whose lives are all older than `until`, and about `limit` of them."""
    rows: list[Row] = transaction.read(
        """SELECT batch, count(*), max(created) FROM request_lives GROUP BY batch ORDER BY batch LIMIT :limit""",
        {"limit": limit},
    )
    found, count = None, 0
    for batch, number, newest in rows:
        if newest >= until or count >= limit:
            break
        found, count = batch, count + number
    return found
