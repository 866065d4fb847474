"""What is kept about a key."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from deepseek_gateway.auth.netlist import Address, net_list
from deepseek_gateway.limits.rules import Limits


class Scope(StrEnum):
    """What a key is for. Each opens its own part of the API and no other; a key has one or several."""

    INFERENCE = "inference"
    ADMIN_READ = "admin-read"
    ADMIN_WRITE = "admin-write"


INFERENCE: Final = frozenset({Scope.INFERENCE})
ADMIN: Final = frozenset({Scope.ADMIN_READ, Scope.ADMIN_WRITE})


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by name; `admin` stands for both of its kinds.

    Raises:
        ValueError: a name is none, or there is no name.
    """
    scopes: set[Scope] = set()
    for name in names:
        if name == "admin":
            scopes |= ADMIN
            continue
        try:
            scopes.add(Scope(name))
        except ValueError:
            known = ", ".join(["admin", *Scope])
            raise ValueError(f"{name[:80]!r} is no scope: there are {known}") from None
    if not scopes:
        raise ValueError("a key needs at least one scope")
    return frozenset(scopes)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the store keeps it; times are Unix seconds.

    Attributes:
        models: names that it may use, exact or as `prefix*`; None allows every model, an empty list none.
        cidrs: networks that it may be used from; None allows every address, an empty list none.
        org_id: whom it belongs to; so `team_id` and `user_id`, which are always of that organisation.
        previous_hash: stays valid until `previous_until` after a rotation with grace.
        owner_disabled: `org`, `team` or `user`: which of its owners is disabled, if one is.
    """

    public_id: str
    secret_hash: str
    name: str
    scopes: frozenset[Scope]
    created: float
    models: tuple[str, ...] | None = None
    limits: Limits = Limits()  # noqa: RUF009  frozen: one instance serves all
    expires: float | None = None
    revoked: float | None = None
    previous_hash: str | None = None
    previous_until: float | None = None
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    cidrs: tuple[str, ...] | None = None
    tags: tuple[str, ...] = ()
    disabled: float | None = None
    last_used: float | None = None
    created_by: str | None = None
    owner_disabled: str | None = None

    def allows_model(self, model: str | None) -> bool:
        """Whether the key may use a model; None is a model whose name nobody knows."""
        if self.models is None:
            return True
        return model is not None and any(_matches(pattern, model) for pattern in self.models)

    def allows_address(self, address: Address | None) -> bool:
        """Whether the key may be used from an address; None is an address that nobody knows."""
        return self.cidrs is None or (address is not None and address in net_list(self.cidrs))

    def state(self, now: float) -> str:
        """`active`, `revoked`, `expired` or `disabled`: the first that holds, from what is most final."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and now >= self.expires:
            return "expired"
        return "active" if self.disabled is None and self.owner_disabled is None else "disabled"

    def to_json(self, now: float) -> dict[str, object]:
        """Everything but the hashes, for listings."""
        return {
            "id": self.public_id,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "state": self.state(now),
            "org_id": self.org_id,
            "team_id": self.team_id,
            "user_id": self.user_id,
            "models": None if self.models is None else list(self.models),
            "cidrs": None if self.cidrs is None else list(self.cidrs),
            "tags": list(self.tags),
            "limits": self.limits.to_json(),
            "created": self.created,
            "created_by": self.created_by,
            "expires": self.expires,
            "disabled": self.disabled,
            "owner_disabled": self.owner_disabled,
            "revoked": self.revoked,
            "last_used": self.last_used,
            "previous_secret_until": self.previous_until,
        }


def _matches(pattern: str, model: str) -> bool:
    if not pattern.endswith("*"):
        return pattern == model
    prefix = pattern[:-1]
    # `base:*` is every adapter of a base model; a name that ends in the colon is none.
    return model.startswith(prefix) and not (prefix.endswith(":") and model == prefix)
