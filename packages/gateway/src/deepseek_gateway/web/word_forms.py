"""The forms of word lists: import a file, say for whom a list counts, try a text."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.lists import format_of
from deepseek_gateway.guard.service import ImportDraft, PolicyDraft, TestDraft
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.web.owners import find_owners
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.refusals import fault_of

FORMATS = ("csv", "jsonl", "text")


@dataclass(slots=True)
class ImportForm:
    """A file to import. `details` are the lines that are wrong, in the service's words."""

    name: str = ""
    format: str = ""
    level: str = "block"
    note: str = ""
    activate: bool = False
    faults: dict[str, str] = field(default_factory=dict[str, str])
    details: str = ""

    @classmethod
    def read(cls, page: Page) -> "ImportForm":
        """The form that was sent."""
        value = page.value
        return cls(value("name"), value("format"), value("level", "block"), value("note"), bool(value("activate")))

    def draft(self, page: Page) -> ImportDraft | None:
        """What it asks for; None where it has faults."""
        upload = page.files.get("file")
        if not self.name:
            self.faults["name"] = page.text("fault.list")
        if upload is None or not upload.content.strip():
            self.faults["file"] = page.text("fault.file")
            return None
        try:
            text = upload.content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.faults["file"] = page.text("fault.not_utf8")
            return None
        values: dict[str, Any] = {
            "text": text,
            "format": self.format if self.format in FORMATS else format_of(upload.name),
            "level": self.level,
            "note": self.note,
            "activate": self.activate,
        }
        try:
            return None if self.faults else ImportDraft(**values)
        except ValidationError as error:
            self.blame(page, error)
            return None

    def blame(self, page: Page, error: ApiError | ValidationError) -> None:
        """Put a refusal beside its field."""
        if isinstance(error, ApiError) and error.param == "text":
            self.faults["file"], self.details = page.text("fault.lines"), error.message
            return
        fault = fault_of(page, error)
        name = {"list": "name", "": "file"}.get(fault.field, fault.field)
        self.faults[name] = fault.message


@dataclass(slots=True)
class PolicyForm:
    """What a list does for a scope."""

    scope: str = "org"
    scope_id: str = ""
    level: str = "listed"
    on_failure: str = "closed"
    faults: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, page: Page) -> "PolicyForm":
        """The form that was sent."""
        value = page.value
        return cls(value("scope"), value("scope_id"), value("level"), value("on_failure"))

    def draft(self, page: Page) -> PolicyDraft | None:
        """What it asks for; None where it has faults. Blocks on the store: an organisation is looked up."""
        scope_id = "" if self.scope == "all" else self.scope_id
        if self.scope == "org":
            owners = find_owners(page, {"org": self.scope_id or "-"})
            if owners.faults:
                self.faults["scope_id"] = owners.faults["org"]
                return None
            scope_id = owners.ids[OwnerKind.ORG]
        values: dict[str, Any] = {
            "scope": self.scope,
            "scope_id": scope_id,
            "level": self.level,
            "on_failure": self.on_failure,
        }
        try:
            return PolicyDraft(**values)
        except ValidationError as error:
            self.blame(page, error)
            return None

    def blame(self, page: Page, error: ApiError | ValidationError) -> None:
        """Put a refusal beside its field."""
        fault = fault_of(page, error)
        self.faults["scope_id" if fault.field in {"", "scope"} else fault.field] = fault.message


@dataclass(slots=True)
class TestForm:
    """A text to try."""

    __test__ = False  # no test, whatever pytest thinks

    text: str = ""
    direction: str = "in"
    list: str = ""
    key: str = ""
    model: str = ""
    faults: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, page: Page) -> "TestForm":
        """The form that was sent; the text as it is, its blanks too."""
        text = page.form.get("text", [""])[0].replace("\r\n", "\n")
        value = page.value
        return cls(text, value("direction", "in"), value("list"), value("key"), value("model"))

    def draft(self, page: Page) -> TestDraft | None:
        """What it asks for; None where it has faults. Blocks on the store: the key's organisation is looked up."""
        name, _, version = self.list.partition("@")
        record = page.gateway.store.keys.find(self.key) if self.key else None
        if self.key and record is None:
            self.faults["key"] = page.text("fault.key")
            return None
        values: dict[str, Any] = {
            "text": self.text,
            "direction": self.direction,
            "key_id": self.key,
            "org_id": None if record is None else record.org_id,
            "model": self.model or None,
            "list": name or None,
            "version": int(version) if version.isascii() and version.isdigit() and len(version) < 9 else None,
        }
        try:
            return TestDraft(**values)
        except ValidationError as error:
            self.blame(page, error)
            return None

    def blame(self, page: Page, error: ApiError | ValidationError) -> None:
        """Put a refusal beside its field."""
        fault = fault_of(page, error, "tried_")
        name = {"list": "list", "version": "list", "key": "key", "model": "model"}.get(fault.field, "text")
        self.faults[name] = fault.message
