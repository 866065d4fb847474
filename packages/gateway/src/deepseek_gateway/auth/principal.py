"""Who asks for an administrative act, and how far that reaches. The services ask here, whatever the way in."""

import getpass
from dataclasses import dataclass
from typing import Literal, Self

from deepseek_gateway.auth.records import ADMIN, KeyRecord, Scope
from deepseek_gateway.errors import ApiError


@dataclass(frozen=True, slots=True)
class Principal:
    """An administrator.

    Attributes:
        kind: `key` (the HTTP API), `session` (the web pages) or `cli` (the commands, on the gateway's machine).
        id: the key's public id, the user's id, or the operator's login name.
        org_id: the one organisation that it administers; None administers all.
        request_id: the HTTP request that asks, if one does.
    """

    kind: Literal["key", "session", "cli"]
    id: str
    scopes: frozenset[Scope]
    org_id: str | None = None
    request_id: str | None = None

    @classmethod
    def of_key(cls, key: KeyRecord, request_id: str | None = None) -> Self:
        """Who holds a key. One that belongs to an organisation administers that one only."""
        return cls("key", key.public_id, key.scopes, key.org_id, request_id)

    @classmethod
    def operator(cls) -> Self:
        """Who runs commands on the gateway's machine, and so holds its store and pepper anyway."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a container may run under an id that has no name
            name = "unknown"
        return cls("cli", name, ADMIN)

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"

    def require(self, scope: Scope) -> None:
        """Go on only with a scope.

        Raises:
            ApiError: 403, it is missing.
        """
        if scope not in self.scopes:
            has = ", ".join(sorted(self.scopes))
            raise ApiError(403, f"{self} has the scope {has}; this needs {scope.value}", code="wrong_scope")

    def require_everything(self) -> None:
        """Go on only when no organisation is the limit.

        Raises:
            ApiError: 403, the principal administers one organisation only.
        """
        if self.org_id is not None:
            message = f"{self} administers the organisation {self.org_id} only: this is for administrators of all"
            raise ApiError(403, message, code="wrong_organisation")

    def sees(self, org_id: str | None) -> bool:
        """Whether what belongs to an organisation (None: to nobody) is in reach."""
        return self.org_id is None or self.org_id == org_id
