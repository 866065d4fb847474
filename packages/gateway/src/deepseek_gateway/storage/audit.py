"""The audit log's tables: written inside the transaction that makes the change, never changed afterwards."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from deepseek_gateway.audit.actor import Acting
from deepseek_gateway.audit.chain import Draft, Entry, Fault, Head, Verifier, is_sealed, json_text, link, seal, seal_key
from deepseek_gateway.audit.mask import mask
from deepseek_gateway.storage.database import Database, Row, Transaction

LOCK = "audit"
PAGE = 1000

_NAMES = tuple(Entry.__slots__)
_COLUMNS = ", ".join(_NAMES)
_MARKS = ", ".join(f":{name}" for name in _NAMES)
# The statements below hold only these names, never a caller's text.
_SELECT = f"SELECT {_COLUMNS} FROM audit_log"  # noqa: S608
_INSERT = f"INSERT INTO audit_log ({_COLUMNS}) VALUES ({_MARKS})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries to list: `subject` and `actor` are whole, `action` may end in `*`."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    request_id: str | None = None
    since: float | None = None
    until: float | None = None


class AuditTable:
    """The log. All nodes share one chain: an append holds the lock `audit` to the end of its transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._seal_key: bytes | None = None

    def seal_with(self, pepper: bytes) -> None:
        """Seal every head from now on."""
        self._seal_key = seal_key(pepper)

    def record(
        self,
        transaction: Transaction,
        actor: Acting,
        action: str,
        subject: str,
        *,
        before: object = None,
        after: object = None,
        policy_version: str = "",
        list_version: str = "",
    ) -> Entry:
        """Write down an administrative act, as the last thing in the transaction that makes the change.

        Args:
            transaction: it holds the log's lock until it ends, so nothing slow may follow.
            actor: who does it.
            action: what, such as `key.rotate`.
            subject: to what: a public id, a name.
            before: the state before: a dataclass, or JSON types. Secrets are masked here.
            after: the state after.
            policy_version: of the configuration that is in force, where it matters.
            list_version: of the word lists, where it matters.
        """
        draft = Draft(
            str(actor),
            action,
            subject[:200],
            json_text(None if before is None else mask(before)),
            json_text(None if after is None else mask(after)),
            actor.request_id,
            policy_version,
            list_version,
        )
        return self.append(transaction, [draft])[0]

    def append(self, transaction: Transaction, drafts: Sequence[Draft]) -> list[Entry]:
        """Put entries at the end of the chain."""
        transaction.lock(LOCK)
        head = _head(transaction.read("SELECT sequence, hash, seal FROM audit_head"))
        entries = link(head, time.time(), drafts)
        transaction.write_many(_INSERT, [asdict(entry) for entry in entries])
        end = entries[-1]
        made = "" if self._seal_key is None else seal(self._seal_key, end.sequence, end.hash)
        sql = "UPDATE audit_head SET sequence = :sequence, hash = :hash, seal = :seal"
        transaction.write(sql, {"sequence": end.sequence, "hash": end.hash, "seal": made})
        return entries

    def head(self) -> Head:
        """The newest entry's place and hash."""
        return _head(self.database.read("SELECT sequence, hash, seal FROM audit_head"))

    def find(self, sequence: int) -> Entry | None:
        """One entry."""
        rows = self.database.read(f"{_SELECT} WHERE sequence = :sequence", {"sequence": sequence})
        return Entry(*rows[0]) if rows else None

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[Entry]:
        """Entries with a sequence above `after`, the oldest first, read in pages."""
        while True:
            values = {"after": after, "until": until if until is not None else 2**62, "page": PAGE}
            where = "WHERE sequence > :after AND sequence <= :until ORDER BY sequence LIMIT :page"
            rows = self.database.read(f"{_SELECT} {where}", values)
            yield from (Entry(*row) for row in rows)
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    def acts(self, action: str, after: int, until: int) -> list[Entry]:
        """Entries of one action with sequences in (after, until], the oldest first."""
        where = "WHERE sequence > :after AND sequence <= :until AND action = :action ORDER BY sequence"
        values = {"after": after, "until": until, "action": action}
        return [Entry(*row) for row in self.database.read(f"{_SELECT} {where}", values)]

    def listing(self, wanted: AuditFilter, limit: int, before: int | None = None) -> list[Entry]:
        """Entries that fit, the newest first; `before` is the sequence of the last one of the page before."""
        conditions, values = _conditions(wanted)
        if before is not None:
            conditions.append("sequence < :before")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"{_SELECT} {where} ORDER BY sequence DESC LIMIT :limit"
        return [Entry(*row) for row in self.database.read(sql, {**values, "before": before, "limit": limit})]

    def verify(self, known: dict[int, str] | None = None) -> tuple[int, Fault | None]:
        """Check the whole chain; gives how many entries are sound, and the first fault.

        Args:
            known: heads that were kept elsewhere, sequence to hash.
        """
        head = self.head()
        verifier = Verifier(head, known)
        # Entries that came after the head was read are not looked at.
        fault = verifier.first_fault(self.entries(until=self._end(head)))
        if fault is None and self._seal_key is not None and not is_sealed(self._seal_key, head):
            message = f"the head {head.sequence} is not sealed with this gateway's pepper: the chain was rewritten"
            fault = Fault(head.sequence, "unsealed", message)
        return verifier.count, fault

    def _end(self, head: Head) -> int:
        """Where to stop: at the head, unless the log goes on behind what the head was a moment later."""
        newest = self.database.read("SELECT coalesce(max(sequence), 0) FROM audit_log")[0][0]
        return head.sequence if newest <= self.head().sequence else newest


def _head(rows: list[Row]) -> Head:
    return Head(*rows[0]) if rows else Head()


def _conditions(wanted: AuditFilter) -> tuple[list[str], dict[str, object]]:
    """SQL conditions of a filter, and their values."""
    action = wanted.action
    given = {
        "actor = :actor": ("actor", wanted.actor),
        "subject = :subject": ("subject", wanted.subject),
        "request_id = :request_id": ("request_id", wanted.request_id),
        "at >= :since": ("since", wanted.since),
        "at < :until": ("until", wanted.until),
    }
    values = {condition: pair for condition, pair in given.items() if pair[1] is not None}
    if action is not None and action.endswith("*"):
        values["substr(action, 1, length(:action)) = :action"] = ("action", action[:-1])
    elif action is not None:
        values["action = :action"] = ("action", action)
    return list(values), dict(values.values())
