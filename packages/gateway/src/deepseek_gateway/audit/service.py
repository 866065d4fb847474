"""Reading the audit log and the lives of requests: what the commands, the admin API and the pages share."""

from dataclasses import asdict, dataclass
from typing import Any

from deepseek_gateway.audit.chain import Entry, Fault, Head
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError
from deepseek_gateway.storage.audit import AuditFilter
from deepseek_gateway.storage.store import Store

MAX_PAGE = 200
MAX_CLIENT_MATCHES = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `audit verify` found: how much is sound, and the first fault."""

    head: Head
    num_entries: int
    num_lives: int
    fault: Fault | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "is_sound": self.fault is None}


@dataclass(frozen=True, slots=True)
class AuditService:
    """The audit log of one store. Calls block on the store."""

    store: Store

    def page(self, by: Principal, wanted: AuditFilter, *, before: int | None = None, limit: int = 50) -> list[Entry]:
        """Entries that fit, the newest first.

        Args:
            by: who asks; the log is for administrators of everything.
            wanted: which.
            before: the sequence of the last entry of the page before.
            limit: entries at most.
        """
        by.require(Scope.ADMIN_READ)
        by.require_everything()
        return self.store.audit.listing(wanted, min(limit, MAX_PAGE), before)

    def head(self, by: Principal) -> Head:
        """Where the chain ends. Kept elsewhere, it shows `verify` a log that was cut, or rewritten as a whole."""
        by.require(Scope.ADMIN_READ)
        by.require_everything()
        return self.store.audit.head()

    def verify(self, known: dict[int, str] | None = None) -> Verdict:
        """Check the whole chain, then every life against it; takes a while where the log is long."""
        head = self.store.audit.head()
        num_entries, fault = self.store.audit.verify(known)
        num_lives = 0
        if fault is None:
            num_lives, fault = self.store.lives.first_fault(self.store.audit.entries(until=head.sequence))
        return Verdict(head, num_entries, num_lives, fault)


@dataclass(frozen=True, slots=True)
class TraceService:
    """Lives of requests. Who administers one organisation sees its own."""

    store: Store

    def find(self, by: Principal, request_id: str) -> dict[str, Any]:
        """Everything about one request: its life, the acts that came by it, and whether its texts are kept.

        Raises:
            ApiError: 404, there is no such request in reach.
        """
        by.require(Scope.ADMIN_READ)
        life = self.store.lives.find(request_id)
        if life is None or not by.sees(life.org_id):
            raise _unknown(request_id)
        acts = [] if by.org_id is not None else self.store.audit.listing(AuditFilter(request_id=request_id), MAX_PAGE)
        return {
            **life.to_json(),
            "acts": [entry.to_json() for entry in acts],
            "payload": self.store.payloads.about(request_id),
        }

    def resolve(self, by: Principal, name: str) -> dict[str, Any]:
        """The same by our id, or by the caller's own if it is of one request only.

        Raises:
            ApiError: 404, there is none; 409, there are several.
        """
        try:
            return self.find(by, name)
        except ApiError:
            found = self.search(by, client_request_id=name, limit=MAX_CLIENT_MATCHES)
        if not found:
            raise _unknown(name)
        if len(found) > 1:
            ids = ", ".join(each["request_id"] for each in found)
            raise ApiError(409, f"{len(found)} requests have the name {name!r}: {ids}", code="ambiguous")
        return self.find(by, found[0]["request_id"])

    def search(
        self,
        by: Principal,
        *,
        client_request_id: str | None = None,
        key_id: str | None = None,
        before: float | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Lives, the newest first: by the caller's own id, else of one key or of all.

        `before` is the `created` of the last one of the page before.
        """
        by.require(Scope.ADMIN_READ)
        limit = min(limit, MAX_PAGE)
        if client_request_id is not None:
            lives = self.store.lives.find_by_client(client_request_id, limit)
        else:
            lives = self.store.lives.listing(key_id, by.org_id, before, limit)
        return [life.to_json() for life in lives if by.sees(life.org_id)]


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"there is no request {name[:150]!r}", code="not_found")
