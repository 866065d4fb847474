"""Who does an administrative act."""

import getpass
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """A name for the audit log: `key:<public id>`, `user:<name>`, `cli:<os user>` or `gateway`.

    `request_id` is the HTTP request that the act came by, if it came by one.
    """

    name: str
    request_id: str | None = None

    @classmethod
    def of_key(cls, public_id: str, request_id: str | None = None) -> "Actor":
        """A caller of the admin API."""
        return cls(f"key:{public_id}", request_id)

    @classmethod
    def of_user(cls, user: str, request_id: str | None = None) -> "Actor":
        """A person who is signed in to the web pages."""
        return cls(f"user:{user}", request_id)

    @classmethod
    def of_cli(cls) -> "Actor":
        """Whoever runs this command."""
        try:
            return cls(f"cli:{getpass.getuser()}")
        except (KeyError, OSError):  # a container may run under an id that has no name
            return cls("cli:unknown")


GATEWAY = Actor("gateway")
"""The gateway itself: timers, recovery, a reload of its configuration file."""
