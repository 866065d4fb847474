"""Who signs in to the pages."""

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What somebody may do: a viewer sees everything and changes nothing."""

    VIEWER = "viewer"
    ADMIN = "admin"

    def covers(self, needed: "Role") -> bool:
        """Whether this role may do what `needed` may."""
        return self is Role.ADMIN or needed is Role.VIEWER


OIDC_PREFIX = "oidc:"
"""What the names of people begin with whom an issuer vouches for, and those of local accounts do not."""


class SessionSource(StrEnum):
    """Who vouched for a session."""

    PASSWORD = "password"  # noqa: S105  a word
    OIDC = "oidc"


@dataclass(frozen=True, slots=True)
class Account:
    """A local account; times are Unix seconds."""

    name: str
    password_hash: str = field(repr=False)
    role: Role
    created: float
    changed: float


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in. `handle` is the hash of its cookie: the cookie itself is kept nowhere."""

    handle: str = field(repr=False)
    account: str
    role: Role
    source: SessionSource
    agent: str
    created: float
    seen: float
    expires: float
