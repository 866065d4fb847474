"""What is kept about a key."""

from dataclasses import dataclass
from enum import StrEnum

from deepseek_gateway.limits.rules import Limits


class Scope(StrEnum):
    """What a key is for. A key for one does not open the other."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the store keeps it; times are Unix seconds.

    `models` None allows every model; an entry `base:*` allows every adapter of a base model. `previous_hash` stays
    valid until `previous_until` after a rotation with grace.
    """

    public_id: str
    secret_hash: str
    name: str
    scope: Scope
    created: float
    models: tuple[str, ...] | None = None
    limits: Limits = Limits()  # noqa: RUF009  frozen: one instance serves all
    expires: float | None = None
    revoked: float | None = None
    previous_hash: str | None = None
    previous_until: float | None = None

    def allows_model(self, model: str | None) -> bool:
        """Whether the key may use a model; None is a model whose name nobody knows."""
        if self.models is None or model in self.models:
            return True
        base, colon, adapter = (model or "").rpartition(":")
        return bool(colon and adapter) and f"{base}:*" in self.models

    def state(self, now: float) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"

    def to_json(self, now: float) -> dict[str, object]:
        """Everything but the hashes, for listings."""
        return {
            "id": self.public_id,
            "name": self.name,
            "scope": self.scope.value,
            "state": self.state(now),
            "models": None if self.models is None else list(self.models),
            "limits": self.limits.to_json(),
            "created": self.created,
            "expires": self.expires,
            "revoked": self.revoked,
            "previous_secret_until": self.previous_until,
        }
