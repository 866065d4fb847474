"""The form of a limit rule: as it was filled in, and the rule that it asks for."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from deepseek_gateway.errors import ApiError
from deepseek_gateway.limits.drafts import LimitDraft
from deepseek_gateway.web import formats
from deepseek_gateway.web.owners import find_owners
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import fault_of

SUBJECTS = ("org", "team", "user", "key", "model")
TEXTS = ("kind", "limit", *SUBJECTS, "time_zone", "on_failure")


@dataclass(slots=True)
class LimitForm:
    """See the module. Fields are texts as they were written; `faults` are messages by field."""

    kind: str = "requests_per_minute"
    limit: str = ""
    org: str = ""
    team: str = ""
    user: str = ""
    key: str = ""
    model: str = ""
    time_zone: str = "UTC"
    on_failure: str = ""
    soft: bool = False
    faults: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, page: Page) -> "LimitForm":
        """The form that was sent."""
        given = cls(soft=bool(page.value("soft")))
        for name in TEXTS:
            setattr(given, name, page.value(name))
        return given

    def draft(self, page: Page) -> LimitDraft | None:
        """The rule that it asks for; None where it has faults. Blocks on the store: owners are looked up."""
        owners = find_owners(page, {name: str(value) for name, value in asdict(self).items()}, takes_each=True)
        self.faults.update(owners.faults)
        values: dict[str, Any] = {
            "kind": self.kind,
            "limit": formats.ungrouped(self.limit),
            "key_id": self.key or None,
            "model": self.model or None,
            "time_zone": self.time_zone or "UTC",
            "soft": self.soft,
            "on_failure": self.on_failure or None,
            **{kind.field: owner_id for kind, owner_id in owners.ids.items()},
        }
        try:
            draft = LimitDraft(**values)
        except ValidationError as error:
            self.blame(page, error)
            return None
        return None if self.faults else draft

    def blame(self, page: Page, error: ApiError | ValidationError) -> None:
        """Put a refusal beside its field.

        Raises:
            ApiError: it is about none of the form's.
        """
        fault = fault_of(page, error, "rule_")
        if isinstance(error, ApiError) and fault.field not in TEXTS:
            raise error
        self.faults.setdefault(fault.field or "limit", fault.message)
