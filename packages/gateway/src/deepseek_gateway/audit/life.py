"""The life of one request as it is kept: JSON with its ledger row, or with why it was refused."""

import hashlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import orjson

from deepseek_gateway.audit.mask import mask_text
from deepseek_gateway.audit.trail import Step
from deepseek_gateway.errors import ApiError

if TYPE_CHECKING:
    from deepseek_gateway.edge.context import RequestContext
    from deepseek_gateway.ledger.records import Settled

NODE = socket.gethostname()[:64]
MAX_MODEL = 256
MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request with a known key that was not admitted, or failed before it was. `created` is Unix time."""

    request_id: str
    client_request_id: str | None
    key_id: str
    org_id: str | None
    route: str
    model: str | None
    status: int
    code: str | None
    message: str
    created: float
    policy_version: str
    list_version: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Life:
    """One life: the columns that it is found by, and its JSON."""

    request_id: str
    client_request_id: str | None
    key_id: str | None
    org_id: str | None
    created: float
    life: str

    @property
    def hash(self) -> str:
        """SHA-256 of the JSON."""
        return hashlib.sha256(self.life.encode()).hexdigest()

    @property
    def fits(self) -> bool:
        """Whether the columns say what the JSON says."""
        told = self.to_json()
        names = ("request_id", "client_request_id", "key_id", "org_id", "created")
        return all(told.get(name) == getattr(self, name) for name in names)

    def to_json(self) -> dict[str, Any]:
        """The JSON, read."""
        return cast("dict[str, Any]", orjson.loads(self.life))


def life_of(settled: "Settled") -> Life:
    """The life of a request that was admitted."""
    row, trail = settled.row, settled.trail
    told = {
        "request_id": row.request_id,
        "client_request_id": trail.client_request_id,
        "key_id": row.key_id,
        "org_id": row.org_id,
        "created": row.created,
        "node": NODE,
        "policy_version": trail.policy_version,
        "list_version": trail.list_version,
        "ledger": row,
        "refusal": None,
        "attempts": trail.attempts,
        "steps": trail.steps,
        "is_kept": trail.is_kept,
    }
    names = (row.request_id, trail.client_request_id, row.key_id, row.org_id, row.created)
    return Life(*names, orjson.dumps(told).decode())


def refused_life(refusal: Refusal) -> Life:
    """The life of a request that was not."""
    told: dict[str, Any] = {
        "request_id": refusal.request_id,
        "client_request_id": refusal.client_request_id,
        "key_id": refusal.key_id,
        "org_id": refusal.org_id,
        "created": refusal.created,
        "node": NODE,
        "policy_version": refusal.policy_version,
        "list_version": refusal.list_version,
        "ledger": None,
        "refusal": {
            "route": refusal.route,
            "model": refusal.model,
            "status": refusal.status,
            "code": refusal.code,
            "message": refusal.message,
        },
        "attempts": [],
        "steps": refusal.steps,
        "is_kept": False,
    }
    names = (refusal.request_id, refusal.client_request_id, refusal.key_id, refusal.org_id, refusal.created)
    return Life(*names, orjson.dumps(told).decode())


def refusal_of(context: "RequestContext", error: ApiError | None) -> Refusal:
    """A request that is over without having been admitted; `error` is None where it was no refusal of ours."""
    model = context.model
    return Refusal(
        request_id=context.request_id,
        client_request_id=context.client_request_id,
        key_id=context.key_id or "",
        org_id=context.org_id,
        route=context.route,
        model=None if model is None else model[:MAX_MODEL],
        status=context.status,
        code=None if error is None else error.code,
        message="" if error is None else mask_text(error.message[:MAX_MESSAGE]),
        created=time.time(),
        policy_version=context.policy_version,
        list_version=context.list_version,
        steps=tuple(context.steps),
    )


def batch_digest(hashes: Sequence[str]) -> str:
    """What the audit log holds of a batch of lives: SHA-256 over their hashes in order, one a line."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
