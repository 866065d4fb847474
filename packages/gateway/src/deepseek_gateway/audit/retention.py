"""Administration of kept texts: whose are kept, reading one, erasing a subject's with proof."""

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from deepseek_gateway.audit.payload import Policy
from deepseek_gateway.audit.vault import Vault, VaultError, open_text
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.audit import AuditFilter
from deepseek_gateway.storage.payloads import SWEEP
from deepseek_gateway.storage.store import Store

ERASE = "payload.erase"
DROP = "replay.erase"
DROPPED_WITHIN_S = 5.0
"""Seconds in which running gateways drop answers of an erased subject that are kept for retries."""

MAX_DROPS = 1000
MAX_DAYS = 3660

PolicyKind = Literal["org", "key"]


@dataclass(frozen=True, slots=True)
class RetentionService:
    """Kept texts of one store. Calls block on the store. Every act, reading a text too, is in the audit log.

    Args:
        store: where texts are kept.
        vault: the master key; None where there is none, and then no text can be read.
    """

    store: Store
    vault: Vault | None = None

    def policies(self, by: Principal) -> dict[tuple[str, str], Policy]:
        """Whose texts are kept, by (`org` or `key`, id)."""
        by.require(Scope.ADMIN_READ)
        by.require_everything()
        return self.store.payloads.policies()

    @atomic
    def set_policy(self, by: Principal, kind: PolicyKind, name: str, policy: Policy) -> Policy:
        """Keep texts of a key, or of an organisation's keys; a key's own policy goes before its organisation's.

        Raises:
            ApiError: 404, there is no such key or organisation; 422, the days are out of range.
        """
        self._may_change(by)
        if not 0 <= policy.days <= MAX_DAYS:
            raise ApiError(422, f"days={policy.days} is not within 0..{MAX_DAYS}", param="days")
        is_there = (
            self.store.keys.find(name) if kind == "key" else self.store.people.find(OwnerKind.ORG, name)
        ) is not None
        if not is_there:
            raise ApiError(404, f"there is no {'key' if kind == 'key' else 'organisation'} {name[:100]!r}")
        before = self.store.payloads.policies().get((kind, name))
        self.store.payloads.set_policy(kind, name, policy)
        self._record(by, "payload_policy.set", f"{kind}:{name}", before, policy)
        return policy

    @atomic
    def remove_policy(self, by: Principal, kind: PolicyKind, name: str) -> Policy:
        """Keep no more texts of a key or an organisation; what is kept stays until its days are over. Gives the policy.

        Raises:
            ApiError: 404, there is no such policy.
        """
        self._may_change(by)
        before = self.store.payloads.policies().get((kind, name))
        if before is None:
            raise ApiError(404, f"there is no policy of {kind} {name[:100]!r}", code="not_found")
        self.store.payloads.remove_policy(kind, name)
        self._record(by, "payload_policy.remove", f"{kind}:{name}", before, None)
        return before

    def show(self, by: Principal, request_id: str) -> dict[str, Any]:
        """What was asked and answered in a request. The audit log has who read it before it is read.

        Raises:
            ApiError: 404, no texts of it are kept; 410, they were erased, or the master key is not here.
        """
        self._may_change(by)
        found = self.store.payloads.find(request_id)
        if found is None:
            raise ApiError(404, f"no texts of the request {request_id[:150]!r} are kept", code="not_found")
        if self.vault is None:
            raise ApiError(410, "no master key is here: GATEWAY_PAYLOAD_KEY, or the file payload-key", code="no_key")
        with self.store.database.transaction():
            self._record(by, "payload.show", request_id, None, {"subject": found.subject})
        wrapped = self.store.payloads.wrapped_key(found.subject)
        if wrapped is None:
            raise ApiError(410, f"the texts of {found.subject} were erased", code="erased")
        try:
            data_key = self.vault.unwrap(found.subject, wrapped)
            text = open_text(data_key, found.subject, request_id, found.sealed)
        except VaultError as error:
            raise ApiError(410, str(error), code="erased") from None
        told = {"subject": found.subject, "created": found.created, "expires": found.expires}
        return {"request_id": request_id, **told, "is_masked": found.is_masked, **orjson.loads(text)}

    def erase(self, by: Principal, subject: str) -> dict[str, Any]:
        """Make a subject's texts unreadable at once, then delete them; gives the proof, which `check` looks at.

        Args:
            by: who asks.
            subject: `user:<id>`, or `key:<public id>` for a key without a user.

        Raises:
            ApiError: 404, there is nobody with this id, nor a text of such a subject; 422, the key's texts are its
                user's. A proof about nobody would pass for one about the person who was meant.
        """
        self._may_change(by)
        self._check_subject(subject)
        with self.store.database.transaction() as transaction:
            erased = self.store.payloads.destroy_key(transaction, subject)
            entry = self.store.audit.record(transaction, by, ERASE, subject, after=asdict(erased))
        while self.store.payloads.delete(subject, entry.at) == SWEEP:
            pass
        for table in ("payload_subjects", "payloads"):
            self.store.database.scrub(table)
        proof = {"subject": subject, "erased": entry.at, **asdict(erased), "answers_dropped_within_s": DROPPED_WITHIN_S}
        return {**proof, "entry": entry.sequence, "entry_hash": entry.hash}

    def drops(self, proof: dict[str, Any]) -> list[dict[str, Any]]:
        """What gateways have dropped because of an erasure of answers that waited for retries, as they said it."""
        wanted = AuditFilter(action=DROP, subject=str(proof["subject"]))
        told = [orjson.loads(entry.after or "{}") for entry in self.store.audit.listing(wanted, MAX_DROPS)]
        return [each for each in told if each.get("entry") == proof["entry"]]

    def check(self, proof: dict[str, Any]) -> list[str]:
        """What is wrong with a proof; nothing where the log is sound and has it, and no text is left."""
        sequence, subject = int(proof["entry"]), str(proof["subject"])
        faults: list[str] = []
        count, fault = self.store.audit.verify({sequence: str(proof["entry_hash"])})
        if fault is not None:
            faults.append(f"the audit log is not sound at entry {fault.sequence}: {fault.message}")
        entry = self.store.audit.find(sequence)
        if entry is None or (entry.action, entry.subject) != (ERASE, subject):
            return [*faults, f"entry {sequence} of {count} is no erasure of {subject}"]
        told = orjson.loads(entry.after or "{}")
        names = ("payloads", "sha256", "data_key_sha256")
        if any(told.get(name) != proof.get(name) for name in names):
            faults.append("the proof says something else than the entry")
        left = self.store.payloads.count(subject, entry.at)
        if left:
            faults.append(f"{left} texts of {subject} from before the erasure are there, unreadable: erase again")
        return faults

    def _check_subject(self, subject: str) -> None:
        payloads, (kind, _, name) = self.store.payloads, subject.partition(":")
        if payloads.wrapped_key(subject) is not None or payloads.count(subject, time.time()):
            return
        key = self.store.keys.find(name) if kind == "key" else None
        if key is not None and key.user_id is not None:
            message = f"the texts of the key {name} are its user's: erase the user {key.user_id}"
            raise ApiError(422, message, param="key_id")
        if key is None and (kind == "key" or self.store.people.find(OwnerKind.USER, name) is None):
            raise ApiError(404, f"there is no {kind} {name[:100]!r}, and no text of it", code="not_found")

    def _may_change(self, by: Principal) -> None:
        by.require(Scope.ADMIN_WRITE)
        by.require_everything()

    def _record(self, by: Principal, action: str, subject: str, before: object, after: object) -> None:
        with self.store.database.transaction() as transaction:
            self.store.audit.record(transaction, by, action, subject, before=before, after=after)


def expiry(policy: Policy, created: float) -> float:
    """When a text's days are over."""
    return created + policy.days * 86400
