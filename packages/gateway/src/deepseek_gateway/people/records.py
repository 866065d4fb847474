"""What is kept about an organisation, a team or a user."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class OwnerKind(StrEnum):
    """The three kinds of owners of keys."""

    ORG = "org"
    TEAM = "team"
    USER = "user"

    @property
    def noun(self) -> str:
        """For messages."""
        return "organisation" if self is OwnerKind.ORG else self.value

    @property
    def field(self) -> str:
        """The field that names such an owner: `org_id`."""
        return f"{self.value}_id"


@dataclass(frozen=True, slots=True)
class Owner:
    """One organisation, team or user; times are Unix seconds.

    Teams and users are of one organisation for good, and their names differ within it. A user may be in one team. While
    one is disabled, no key of it works.
    """

    kind: OwnerKind
    id: str
    name: str
    created: float
    disabled: float | None = None
    org_id: str | None = None
    team_id: str | None = None

    @property
    def organisation(self) -> str:
        """The organisation that it is, or is of."""
        return self.id if self.org_id is None else self.org_id

    def to_json(self) -> dict[str, object]:
        """All that its kind has."""
        absent = {"kind"}
        if self.kind is not OwnerKind.USER:
            absent.add("team_id")
        if self.kind is OwnerKind.ORG:
            absent.add("org_id")
        return {name: value for name, value in asdict(self).items() if name not in absent}
