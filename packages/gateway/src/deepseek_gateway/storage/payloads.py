"""Kept texts, sealed; the data keys of their subjects; and whose texts are kept."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepseek_gateway.audit.payload import Policy
from deepseek_gateway.audit.vault import Vault, seal_text
from deepseek_gateway.storage.database import Database, Transaction

SWEEP = 500
"""Rows that are deleted at a time: other writers wait no longer than that takes."""

_INSERT = """INSERT INTO payloads (request_id, subject, key_id, created, expires, is_masked, sha256, sealed)
    VALUES (:request_id, :subject, :key_id, :created, :expires, :is_masked, :sha256, :sealed)
    ON CONFLICT (request_id) DO NOTHING"""
_NEW_KEY = """INSERT INTO payload_subjects (subject, wrapped, master, created)
    VALUES (:subject, :wrapped, :master, :created)
    ON CONFLICT (subject) DO UPDATE SET wrapped = excluded.wrapped, master = excluded.master, created = excluded.created
    WHERE payload_subjects.master = ''"""


@dataclass(frozen=True, slots=True)
class SealedPayload:
    """A row."""

    request_id: str
    subject: str
    created: float
    expires: float
    is_masked: bool
    sealed: bytes


@dataclass(frozen=True, slots=True)
class PlainPayload:
    """A text that is about to be sealed. `expires` is Unix time."""

    request_id: str
    subject: str
    key_id: str
    created: float
    expires: float
    is_masked: bool
    text: bytes

    def __repr__(self) -> str:
        return f"PlainPayload({self.request_id!r})"


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure destroyed: how many texts, the digest of their ids and ciphertexts, and the data key's digest."""

    payloads: int
    sha256: str
    data_key_sha256: str | None


@dataclass(frozen=True, slots=True)
class PayloadTable:
    """See the module."""

    database: Database

    def keep(self, payloads: Sequence[PlainPayload], vault: Vault) -> None:
        """Seal texts under their subjects' data keys; a subject that has none gets one."""
        with self.database.transaction() as transaction:
            keys = {subject: self._data_key(transaction, subject, vault) for subject in _subjects(payloads)}
            transaction.write_many(_INSERT, [_row(payload, keys[payload.subject]) for payload in payloads])

    def find(self, request_id: str) -> SealedPayload | None:
        """The texts of a request."""
        sql = "SELECT request_id, subject, created, expires, is_masked, sealed FROM payloads WHERE request_id = :id"
        rows = self.database.read(sql, {"id": request_id})
        if not rows:
            return None
        name, subject, created, expires, is_masked, sealed = rows[0]
        return SealedPayload(name, subject, created, expires, bool(is_masked), bytes(sealed))

    def about(self, request_id: str) -> dict[str, Any] | None:
        """What may be said of a request's texts without opening them; None where none are kept."""
        rows = self.database.read(
            "SELECT subject, created, expires, is_masked, length(sealed) FROM payloads WHERE request_id = :request_id",
            {"request_id": request_id},
        )
        if not rows:
            return None
        subject, created, expires, is_masked, size = rows[0]
        return {"subject": subject, "created": created, "expires": expires, "is_masked": bool(is_masked), "bytes": size}

    def wrapped_key(self, subject: str) -> bytes | None:
        """A subject's wrapped data key; None where there is none, or it was erased."""
        rows = self.database.read("SELECT wrapped FROM payload_subjects WHERE subject = :s", {"s": subject})
        return bytes(rows[0][0]) or None if rows else None

    def count(self, subject: str, until: float) -> int:
        """Texts of a subject that were kept up to a Unix time."""
        sql = "SELECT count(*) FROM payloads WHERE subject = :subject AND created <= :until"
        return self.database.read(sql, {"subject": subject, "until": until})[0][0]

    def destroy_key(self, transaction: Transaction, subject: str) -> Erased:
        """Forget a subject's data key: none of its texts can be read any more. The texts are deleted by `delete`."""
        # Whoever keeps texts of this subject in the same moment either comes before, and is counted, or gets a new key.
        transaction.write("UPDATE payload_subjects SET created = created WHERE subject = :s", {"s": subject})
        rows = transaction.read("SELECT wrapped FROM payload_subjects WHERE subject = :s", {"s": subject})
        wrapped = bytes(rows[0][0]) if rows else b""
        found = transaction.read(
            "SELECT request_id, sha256 FROM payloads WHERE subject = :s ORDER BY request_id", {"s": subject}
        )
        transaction.write(
            "UPDATE payload_subjects SET wrapped = :none, master = '', created = :now WHERE subject = :s",
            {"none": b"", "now": time.time(), "s": subject},
        )
        digest = hashlib.sha256("\n".join(f"{name} {sha}" for name, sha in found).encode()).hexdigest()
        return Erased(len(found), digest, hashlib.sha256(wrapped).hexdigest() if wrapped else None)

    def delete(self, subject: str, until: float) -> int:
        """Delete up to `SWEEP` of a subject's texts that are not younger than a Unix time; gives how many."""
        return self.database.write(
            """DELETE FROM payloads WHERE request_id IN
                (SELECT request_id FROM payloads WHERE subject = :subject AND created <= :until LIMIT :limit)""",
            {"subject": subject, "until": until, "limit": SWEEP},
        )

    def sweep(self, now: float) -> int:
        """Delete up to `SWEEP` texts whose days are over, or whose data key is gone; gives how many."""
        deleted = self.database.write(
            """DELETE FROM payloads WHERE request_id IN
                (SELECT request_id FROM payloads WHERE expires <= :now LIMIT :limit)""",
            {"now": now, "limit": SWEEP},
        )
        return deleted or self.database.write(
            """DELETE FROM payloads WHERE request_id IN (SELECT request_id FROM payload_subjects
                JOIN payloads ON payloads.subject = payload_subjects.subject
                WHERE master = '' AND payloads.created <= payload_subjects.created LIMIT :limit)""",
            {"limit": SWEEP},
        )

    def policies(self) -> dict[tuple[str, str], Policy]:
        """All policies, by (`org` or `key`, id)."""
        rows = self.database.read("SELECT kind, id, days, mask_pii FROM payload_policies ORDER BY kind, id")
        return {(kind, name): Policy(days, bool(mask)) for kind, name, days, mask in rows}

    def set_policy(self, kind: str, name: str, policy: Policy) -> None:
        """Set or replace a policy."""
        self.database.write(
            """INSERT INTO payload_policies (kind, id, days, mask_pii) VALUES (:kind, :id, :days, :mask)
                ON CONFLICT (kind, id) DO UPDATE SET days = excluded.days, mask_pii = excluded.mask_pii""",
            {"kind": kind, "id": name, "days": policy.days, "mask": int(policy.mask_pii)},
        )

    def remove_policy(self, kind: str, name: str) -> bool:
        """Remove a policy; False when there is none."""
        sql = "DELETE FROM payload_policies WHERE kind = :kind AND id = :id"
        return bool(self.database.write(sql, {"kind": kind, "id": name}))

    def _data_key(self, transaction: Transaction, subject: str, vault: Vault) -> bytes:
        key, wrapped = vault.new_data_key(subject)
        values = {"subject": subject, "wrapped": wrapped, "master": vault.name, "created": time.time()}
        if transaction.write(_NEW_KEY, values):
            return key
        # Locks the row: an erasure waits until these texts are there, and counts them.
        transaction.write("UPDATE payload_subjects SET created = created WHERE subject = :s", {"s": subject})
        rows = transaction.read("SELECT wrapped FROM payload_subjects WHERE subject = :s", {"s": subject})
        return vault.unwrap(subject, bytes(rows[0][0]))


def _subjects(payloads: Sequence[PlainPayload]) -> list[str]:
    return sorted(
        {payload.subject for payload in payloads}
    )  # in one order, so that two nodes never wait for each other


def _row(payload: PlainPayload, data_key: bytes) -> dict[str, object]:
    sealed = seal_text(data_key, payload.subject, payload.request_id, payload.text)
    return {
        "request_id": payload.request_id,
        "subject": payload.subject,
        "key_id": payload.key_id,
        "created": payload.created,
        "expires": payload.expires,
        "is_masked": int(payload.is_masked),
        "sha256": hashlib.sha256(sealed).hexdigest(),
        "sealed": sealed,
    }
