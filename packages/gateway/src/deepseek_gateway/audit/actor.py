"""Who does an administrative act."""

import getpass
from dataclasses import dataclass
from typing import Protocol


class Acting(Protocol):
    """Whoever acts: its text is the log's `actor` (`key:<public id>`, `session:<user>`, `cli:<os user>`, `gateway`).

    `request_id` is the HTTP request that the act came by, None where it came by none.
    """

    @property
    def request_id(self) -> str | None:
        """The request."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Actor:
    """A plain actor."""

    name: str
    request_id: str | None = None

    def __str__(self) -> str:
        return self.name


GATEWAY = Actor("gateway")
"""The gateway itself: timers, recovery, a reload of its configuration file."""


def os_user() -> str:
    """The login name of this process's owner."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id that has no name
        return "unknown"
