"""Administration of word lists and the review queue: the rules, whatever the way in."""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from deepseek_gateway.auth.acts import Act, record_act
from deepseek_gateway.auth.fields import Draft, Id
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError
from deepseek_gateway.guard.entries import Entry, Level, WordListError
from deepseek_gateway.guard.lists import MAX_ENTRIES, read_list
from deepseek_gateway.guard.policy import LoadedList, Snapshot, rule_place
from deepseek_gateway.guard.stream import TextFilter
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.paging import Cursor
from deepseek_gateway.storage.store import Store
from deepseek_gateway.storage.words import ListRow, PolicyRow, ReviewRow, VersionRow

PolicyScope = Literal["all", "org", "model", "key"]
PolicyLevel = Literal["listed", "block", "mask", "review", "off"]
ReviewState = Literal["new", "confirmed", "dismissed"]
Note = Annotated[str, Field(max_length=500)]

_NAME = re.compile(r"[0-9A-Za-z_-]{1,40}")


class ImportDraft(Draft):
    """A list as a file: `level` is for entries that name none."""

    text: Annotated[str, Field(min_length=1)]
    format: Literal["csv", "jsonl", "text"] = "csv"
    level: Literal["block", "mask", "review", "allow"] = "block"
    note: Note = ""
    activate: bool = False


class ActivationDraft(Draft):
    """Which version counts; null: none."""

    version: Annotated[int, Field(ge=1)] | None


class PolicyTarget(Draft):
    """For whom: everybody, an organisation, a model or a key. `scope_id` is empty for everybody."""

    scope: PolicyScope = "all"
    scope_id: Annotated[str, Field(max_length=200)] = ""


class PolicyDraft(PolicyTarget):
    """What a list does for a scope."""

    level: PolicyLevel = "listed"
    on_failure: Literal["closed", "open"] = "closed"


class TestDraft(Draft):
    """A text to try: with the lists in force for a key and a model, or with one version of one list."""

    __test__ = False  # no test, whatever pytest thinks

    text: Annotated[str, Field(max_length=100_000)]
    direction: Literal["in", "out"] = "in"
    key_id: Annotated[str, Field(max_length=40)] = ""
    org_id: Id | None = None
    model: Annotated[str, Field(max_length=200)] | None = None
    list: Id | None = None
    version: Annotated[int, Field(ge=1)] | None = None


class DecisionDraft(Draft):
    """A word on a decision."""

    note: Note = ""


class PhraseDraft(Draft):
    """A phrase in which hits are harmless."""

    phrase: Annotated[str, Field(min_length=1, max_length=128)]
    note: Note = ""


@dataclass(frozen=True, slots=True)
class WordService:
    """Word lists of one store. Calls block on the store.

    Every method takes who asks first, and raises ApiError: 403, it may not; 404, there is no such thing; 422, a field
    or a list is wrong. Lists are for all organisations, so they are for administrators of all.
    """

    store: Store

    def lists(self, by: Principal) -> list[ListRow]:
        """All lists."""
        _require(by, Scope.ADMIN_READ)
        return self.store.words.lists()

    def versions(self, by: Principal, name: str) -> list[VersionRow]:
        """Versions of a list, the newest first."""
        _require(by, Scope.ADMIN_READ)
        return self._versions(name)

    def entries(self, by: Principal, name: str, version: int | None = None) -> tuple[int, list[Entry]]:
        """A version and its entries: the active one, else the newest, if none is named."""
        _require(by, Scope.ADMIN_READ)
        wanted = self._version(name, version)
        return wanted, self.store.words.entries(name, wanted)

    def import_file(self, by: Principal, name: str, draft: ImportDraft) -> VersionRow:
        """A new version of a list, from a file."""
        try:
            entries = read_list(draft.text, draft.format, Level(draft.level))
        except WordListError as error:
            raise ApiError(422, str(error), param="text") from None
        return self.add_version(by, name, entries, note=draft.note, activate=draft.activate)

    @atomic
    def add_version(
        self, by: Principal, name: str, entries: Sequence[Entry], *, note: str = "", activate: bool = False
    ) -> VersionRow:
        """A new version of a list, which is made if it is new."""
        _require(by, Scope.ADMIN_WRITE)
        if not _NAME.fullmatch(name):
            raise ApiError(422, f"list={name[:80]!r}: letters, digits, _ and -, 40 at most", param="list")
        version = self.store.words.add_version(name, entries, note=note, by=str(by), now=time.time())
        self._record(by, "words.import", name, None, asdict(version))
        if activate:
            self.activate(by, name, version.version)
        return version

    @atomic
    def activate(self, by: Principal, name: str, version: int | None) -> ListRow:
        """Put a version in force, or none. Gateways follow within two seconds."""
        _require(by, Scope.ADMIN_WRITE)
        before = self._list(name)
        if not self.store.words.activate(name, version):
            known = ", ".join(str(row.version) for row in self.store.words.versions(name))
            raise ApiError(404, f"the list {name} has no version {version}, only: {known}", code="not_found")
        after = self._list(name)
        self._record(by, "words.activate", name, asdict(before), asdict(after))
        return after

    def policies(self, by: Principal) -> list[PolicyRow]:
        """All policies."""
        _require(by, Scope.ADMIN_READ)
        return self.store.words.policies()

    @atomic
    def set_policy(self, by: Principal, name: str, draft: PolicyDraft) -> PolicyRow:
        """Say what a list does for a scope."""
        _require(by, Scope.ADMIN_WRITE)
        if (draft.scope == "all") != (draft.scope_id == ""):
            raise ApiError(422, f"scope_id={draft.scope_id!r}: empty for all, else an id or a model", param="scope_id")
        self._check_scope(draft)
        row = PolicyRow(draft.scope, draft.scope_id, self._list(name).name, draft.level, draft.on_failure)
        self.store.words.set_policy(row)
        self._record(by, "words.policy", name, None, asdict(row))
        return row

    def _check_scope(self, target: PolicyTarget) -> None:
        """A policy for nobody would look as if it protected somebody."""
        name = target.scope_id
        if target.scope == "org" and self.store.people.find(OwnerKind.ORG, name) is None:
            raise ApiError(422, f"scope_id={name!r}: there is no organisation with this id", param="scope_id")
        if target.scope == "key" and self.store.keys.find(name) is None:
            raise ApiError(422, f"scope_id={name[:40]!r}: there is no key with this id", param="scope_id")

    @atomic
    def drop_policy(self, by: Principal, name: str, target: PolicyTarget) -> None:
        """Say nothing about a list for a scope."""
        _require(by, Scope.ADMIN_WRITE)
        if not self.store.words.drop_policy(target.scope, target.scope_id, self._list(name).name):
            whom = f"{target.scope} {target.scope_id}".strip()
            raise ApiError(404, f"nothing is said about the list {name} for {whom}", code="not_found")
        self._record(by, "words.policy_drop", name, target.model_dump(), None)

    def test(self, by: Principal, draft: TestDraft) -> dict[str, Any]:
        """What the filter would make of a text."""
        _require(by, Scope.ADMIN_READ)
        snapshot = self._snapshot(draft)
        try:
            policy = snapshot.compile(snapshot.effective(draft.key_id, draft.org_id, draft.model))
        except WordListError as error:
            raise ApiError(422, str(error)) from None
        matcher = policy.inward if draft.direction == "in" else policy.outward
        if matcher is None:
            return {"version": policy.version, "text": draft.text, "is_blocked": False, "hits": []}
        text_filter = TextFilter(matcher)
        text = text_filter.feed(draft.text) + text_filter.finish()
        hits = [
            {
                "rule": hit.rule.id,
                "level": hit.rule.level.value,
                "category": hit.rule.entry.category,
                "start": hit.start,
                "end": hit.end,
                "text": hit.text,
                "pattern": hit.rule.entry.pattern,
            }
            for hit in text_filter.hits
        ]
        return {"version": policy.version, "text": text, "is_blocked": text_filter.is_blocked, "hits": hits}

    def reviews(
        self, by: Principal, state: ReviewState | None, after: Cursor | None = None, limit: int = 50
    ) -> tuple[list[ReviewRow], Cursor | None]:
        """Hits, the newest first, and where the next page begins."""
        _require(by, Scope.ADMIN_READ)
        place = None if after is None else (after.created, after.id)
        found = self.store.words.reviews(state, limit + 1, place)
        more = len(found) > limit
        return found[:limit], Cursor(found[limit - 1].created, found[limit - 1].id) if more else None

    def review(self, by: Principal, review_id: str) -> ReviewRow:
        """One hit."""
        _require(by, Scope.ADMIN_READ)
        return self._review(review_id)

    def counts(self, by: Principal) -> dict[str, int]:
        """How many hits are in each state."""
        _require(by, Scope.ADMIN_READ)
        return {"new": 0, "confirmed": 0, "dismissed": 0, **self.store.words.count_reviews()}

    def rule_of(self, by: Principal, rule_id: str) -> Entry | None:
        """The entry behind a rule's id; None when it is gone."""
        _require(by, Scope.ADMIN_READ)
        return self._entry_of(rule_id)

    def confirm(self, by: Principal, review_id: str, note: str = "") -> ReviewRow:
        """The hit was right."""
        return self._decide(by, review_id, "confirmed", note)

    def dismiss(self, by: Principal, review_id: str, note: str = "") -> tuple[ReviewRow, str]:
        """The hit was wrong: gives the pattern, as the beginning of a phrase to allow.

        `allow` takes the whole phrase in which the words are harmless.
        """
        row = self._decide(by, review_id, "dismissed", note)
        entry = self._entry_of(row.rule)
        return row, "" if entry is None else entry.pattern

    @atomic
    def allow(self, by: Principal, name: str, draft: PhraseDraft) -> VersionRow:
        """Allow a phrase: a new version of the list, in force if the list is."""
        _require(by, Scope.ADMIN_WRITE)
        row, version = self._list(name), self._version(name, None)
        entries = self.store.words.entries(name, version)
        phrase = Entry(draft.phrase, Level.ALLOW, source=str(by))
        if len(entries) >= MAX_ENTRIES:
            raise ApiError(422, f"the list {name} has {len(entries)} entries, the most: import a smaller one")
        try:
            phrase.check()
        except WordListError as error:
            raise ApiError(422, str(error), param="phrase") from None
        is_active = row.active_version is not None
        return self.add_version(by, name, [*entries, phrase], note=draft.note or "a phrase allowed", activate=is_active)

    @atomic
    def _decide(self, by: Principal, review_id: str, state: ReviewState, note: str) -> ReviewRow:
        _require(by, Scope.ADMIN_WRITE)
        before = self._review(review_id)
        self.store.words.decide(review_id, state, by=str(by), note=note, now=time.time())
        self._record(by, f"review.{state}", review_id, {"state": before.state}, {"state": state, "rule": before.rule})
        return self._review(review_id)

    def _review(self, review_id: str) -> ReviewRow:
        row = self.store.words.review(review_id) if _NAME.fullmatch(review_id) else None
        if row is None:
            raise ApiError(404, f"there is no review {review_id[:80]!r}", code="not_found")
        return row

    def _entry_of(self, rule_id: str) -> Entry | None:
        try:
            name, version, number = rule_place(rule_id)
        except WordListError:
            return None
        entries = self.store.words.entries(name, version)
        return entries[number - 1] if 0 < number <= len(entries) else None

    def _snapshot(self, draft: TestDraft) -> Snapshot:
        """What a test is about: one version of one list, or all that is in force."""
        words = self.store.words
        if draft.list is not None:
            version = self._version(draft.list, draft.version)
            loaded = LoadedList(draft.list, version, tuple(words.entries(draft.list, version)))
            return Snapshot({draft.list: loaded}, {}, frozenset(), time.time())
        lists = {
            row.name: LoadedList(row.name, row.active_version, tuple(words.entries(row.name, row.active_version)))
            for row in words.lists()
            if row.active_version is not None
        }
        wishes: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
        for row in words.policies():
            wishes.setdefault((row.scope, row.scope_id), {})[row.list] = (row.level, row.on_failure)
        return Snapshot(lists, wishes, frozenset(), time.time())

    def _list(self, name: str) -> ListRow:
        for row in self.store.words.lists() if _NAME.fullmatch(name) else ():
            if row.name == name:
                return row
        raise ApiError(404, f"there is no word list {name[:80]!r}", param="list", code="not_found")

    def _versions(self, name: str) -> list[VersionRow]:
        self._list(name)
        return self.store.words.versions(name)

    def _version(self, name: str, version: int | None) -> int:
        """A version that exists: the one named, else the active one, else the newest."""
        active = self._list(name).active_version
        known = [row.version for row in self._versions(name)]
        wanted = version or active or known[0]
        if wanted not in known:
            raise ApiError(404, f"the list {name} has no version {wanted}", param="version", code="not_found")
        return wanted

    def _record(
        self, by: Principal, action: str, target: str, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> None:
        record_act(self.store.audit, Act(by, action, target, None, before, after))


def _require(by: Principal, scope: Scope) -> None:
    by.require(scope)
    by.require_everything()
