"""The form of a key: as it was filled in, what it means, and what is wrong with it, field by field."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from deepseek_gateway.auth.drafts import KeyChanges, KeyDraft
from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.errors import ApiError
from deepseek_gateway.web import formats
from deepseek_gateway.web.owners import find_owners
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import fault_of

LIMIT_NAMES = ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "tokens_per_month")
DAY_S = 86400

Drafted = TypeVar("Drafted", KeyDraft, KeyChanges)


@dataclass(slots=True)
class KeyForm:
    """See the module. Fields are texts as they were written; `faults` are messages by field."""

    name: str = ""
    scopes: list[str] = field(default_factory=lambda: ["inference"])
    org: str = ""
    team: str = ""
    user: str = ""
    models: str = ""
    cidrs: str = ""
    tags: str = ""
    expires: str = ""
    limits: dict[str, str] = field(default_factory=dict[str, str])
    faults: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, page: Page) -> "KeyForm":
        """The form that was sent."""
        given = cls(scopes=page.values("scopes"), limits={name: page.value(name) for name in LIMIT_NAMES})
        for name in ("name", "org", "team", "user", "models", "cidrs", "tags", "expires"):
            setattr(given, name, page.value(name))
        return given

    @classmethod
    def of(cls, record: KeyRecord, owners: Mapping[str, str]) -> "KeyForm":
        """The form that would make a key like this one; `owners` are ids or names by kind."""
        limits = {name: "" if value is None else str(value) for name, value in record.limits.to_json().items()}
        return cls(
            name=record.name,
            scopes=sorted(record.scopes),
            org=owners.get("org", ""),
            team=owners.get("team", ""),
            user=owners.get("user", ""),
            models=", ".join(record.models or ()),
            cidrs=", ".join(record.cidrs or ()),
            tags=", ".join(record.tags),
            expires="" if record.expires is None else last_day_of(record.expires),
            limits={name: limits[name] for name in LIMIT_NAMES},
        )

    def draft(self, page: Page) -> KeyDraft | None:
        """The key that it asks for; None where it has faults. Blocks on the store: owners are looked up."""
        return self._checked(page, KeyDraft, self._values(page))

    def changes(self, page: Page, record: KeyRecord) -> KeyChanges | None:
        """What it changes of a key; None where it has faults. Blocks on the store."""
        values = self._values(page)
        values.pop("org_id", None)  # a key is of its organisation for good
        absent: dict[str, Any] = {"team_id": None, "user_id": None, "models": None, "cidrs": None, "expires": None}
        if record.expires is not None and self.expires == last_day_of(record.expires):
            absent["expires"] = values["expires"] = record.expires  # untouched: to the second, as it was
            self.faults.pop("expires", None)
        return self._checked(page, KeyChanges, {**absent, **values})

    def _values(self, page: Page) -> dict[str, Any]:
        values: dict[str, Any] = {"name": self.name, "scopes": self.scopes, "limits": self._limits(page)}
        owners = find_owners(page, {"org": self.org, "team": self.team, "user": self.user})
        self.faults.update(owners.faults)
        values |= {kind.field: owner_id for kind, owner_id in owners.ids.items()}
        for name in ("models", "cidrs"):
            if listed := _listed(getattr(self, name)):
                values[name] = listed
        values["tags"] = _listed(self.tags)
        if self.expires:
            day = formats.parse_day(self.expires)
            if day is None or day + DAY_S <= time.time():
                self.faults["expires"] = page.text("fault.expires")
            else:
                values["expires"] = float(day + DAY_S)  # the day that was named is its last
        return values

    def _checked(self, page: Page, kind: type[Drafted], values: dict[str, Any]) -> Drafted | None:
        try:
            draft = kind(**values)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_context=False):
                self._fault(page, str(fault["loc"][-1 if fault["loc"][0] == "limits" else 0]), fault["msg"])
            return None
        return None if self.faults else draft

    def blame(self, page: Page, error: ApiError) -> None:
        """Put what a service refuses beside its field.

        Raises:
            ApiError: it is about no field.
        """
        if error.param is None:
            raise error
        fault = fault_of(page, error)
        self.faults[fault.field] = fault.message

    def _fault(self, page: Page, name: str, message: str) -> None:
        key = f"fault.{'limit' if name in LIMIT_NAMES else name}"
        self.faults[name] = page.text(key) if page.web.messages.has(key) else message

    def _limits(self, page: Page) -> dict[str, int]:
        numbers: dict[str, int] = {}
        for name, text in self.limits.items():
            digits = formats.ungrouped(text)
            if digits.isascii() and digits.isdigit() and len(digits) <= 16:
                numbers[name] = int(digits)
            elif digits:
                self._fault(page, name, "")
        return numbers


def _listed(text: str) -> list[str]:
    """Entries that are separated by commas, spaces or lines."""
    return text.replace(",", " ").replace("\u3001", " ").replace("\uff0c", " ").split()


def last_day_of(expires: float) -> str:
    """The last day (UTC) on which what ends at a Unix time still holds."""
    return formats.day(expires - 1)
