"""/admin/words and /admin/reviews."""

from dataclasses import asdict
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepseek_gateway.auth.records import Scope
from deepseek_gateway.guard.entries import Level
from deepseek_gateway.guard.lists import write_list
from deepseek_gateway.guard.service import (
    ActivationDraft,
    DecisionDraft,
    ImportDraft,
    PhraseDraft,
    PolicyDraft,
    PolicyLevel,
    PolicyScope,
    PolicyTarget,
    ReviewState,
    TestDraft,
    WordService,
)
from deepseek_gateway.routes.admin.answers import Answer, Page
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation
from deepseek_gateway.routes.admin.paging import PageQuery, page_of

MAX_LIST_BYTES: Final = 16 * 2**20


class WordListAnswer(Answer):
    """A list; `active_version` is null while it is off."""

    name: str
    active_version: int | None
    created: float


class WordPolicyAnswer(Answer):
    """What a list does for a scope."""

    scope: PolicyScope
    scope_id: str
    list: str
    level: PolicyLevel
    on_failure: Literal["closed", "open"]


class WordListsAnswer(Answer):
    """All lists, and what is said about them."""

    data: list[WordListAnswer]
    policies: list[WordPolicyAnswer]
    fault: Annotated[str | None, Field(description="what is wrong with the lists in this gateway's memory")]


class WordVersionAnswer(Answer):
    """One version of a list."""

    list: str
    version: int
    entries: int
    sha256: str
    note: str
    created: float
    created_by: str


class WordVersionsAnswer(Answer):
    """Versions of a list, the newest first."""

    data: list[WordVersionAnswer]


class ExportQuery(BaseModel):
    """Which version (the active one, else the newest), and as what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=1, le=2**31)] | None = None
    format: Literal["csv", "jsonl", "text"] = "csv"


class ExportAnswer(Answer):
    """A version as a file."""

    list: str
    version: int
    text: str


class WordHitAnswer(Answer):
    """A hit of a test."""

    rule: str
    level: Level
    category: str
    start: int
    end: int
    text: str
    pattern: str


class WordTestAnswer(Answer):
    """What becomes of a text: all of it, or what is safe before the blocked words."""

    version: Annotated[str, Field(description="of the lists and policies, as in the audit log")]
    text: str
    is_blocked: bool
    hits: list[WordHitAnswer]


class DroppedAnswer(Answer):
    """Nothing is said any more."""

    dropped: Literal[True]


class ReviewAnswer(Answer):
    """A hit in the review queue."""

    id: str
    created: float
    request_id: str
    key_id: str
    model: str | None
    direction: Literal["in", "out"]
    field: str
    choice: int
    rule: Annotated[str, Field(description="list@version#number")]
    category: str
    level: str
    hit_start: int
    hit_end: int
    hit_hmac: str
    state: ReviewState
    decided: float | None
    decided_by: str | None
    note: str


class ReviewPage(Page):
    """Hits, the newest first."""

    data: list[ReviewAnswer]


class DismissedAnswer(Answer):
    """A dismissed hit, and a phrase that could be allowed; empty if there is none to propose."""

    review: ReviewAnswer
    proposal: str


class ReviewQuery(PageQuery):
    """Which hits."""

    state: ReviewState | None = None


def _service(call: AdminCall) -> WordService:
    return WordService(call.gateway.store)


def _lists(call: AdminCall) -> object:
    service = _service(call)
    lists, policies = service.lists(call.by), service.policies(call.by)
    fault = call.gateway.words.failure
    return {"data": [asdict(row) for row in lists], "policies": [asdict(row) for row in policies], "fault": fault}


def _versions(call: AdminCall) -> object:
    return {"data": [asdict(row) for row in _service(call).versions(call.by, call.names["list"])]}


def _import(call: AdminCall) -> object:
    return asdict(_service(call).import_file(call.by, call.names["list"], call.body))


def _export(call: AdminCall) -> object:
    query: ExportQuery = call.query
    version, entries = _service(call).entries(call.by, call.names["list"], query.version)
    return {"list": call.names["list"], "version": version, "text": write_list(entries, query.format)}


def _activate(call: AdminCall) -> object:
    return asdict(_service(call).activate(call.by, call.names["list"], call.body.version))


def _allow(call: AdminCall) -> object:
    return asdict(_service(call).allow(call.by, call.names["list"], call.body))


def _set_policy(call: AdminCall) -> object:
    return asdict(_service(call).set_policy(call.by, call.names["list"], call.body))


def _drop_policy(call: AdminCall) -> object:
    _service(call).drop_policy(call.by, call.names["list"], call.body)
    return {"dropped": True}


def _test(call: AdminCall) -> object:
    return _service(call).test(call.by, call.body)


def _reviews(call: AdminCall) -> object:
    query: ReviewQuery = call.query
    rows, after = _service(call).reviews(call.by, query.state, query.after, query.limit)
    return page_of([asdict(row) for row in rows], after)


def _review(call: AdminCall) -> object:
    return asdict(_service(call).review(call.by, call.names["review_id"]))


def _confirm(call: AdminCall) -> object:
    return asdict(_service(call).confirm(call.by, call.names["review_id"], call.body.note))


def _dismiss(call: AdminCall) -> object:
    row, proposal = _service(call).dismiss(call.by, call.names["review_id"], call.body.note)
    return {"review": asdict(row), "proposal": proposal}


_LIST: Final = "/admin/words/{list}"
_REVIEW: Final = "/admin/reviews/{review_id}"
_WRITE: Final = Scope.ADMIN_WRITE
OPERATIONS: Final = (
    AdminOperation(
        method="GET",
        path="/admin/words",
        summary="Word lists and their policies",
        is_global=True,
        answer=(WordListsAnswer,),
        run=_lists,
    ),
    AdminOperation(
        method="GET",
        path=_LIST,
        summary="Versions of a word list",
        is_global=True,
        answer=(WordVersionsAnswer,),
        errors=(404,),
        run=_versions,
    ),
    AdminOperation(
        method="POST",
        path=_LIST,
        summary="Import a new version of a word list",
        access=_WRITE,
        is_global=True,
        body=ImportDraft,
        max_body_bytes=MAX_LIST_BYTES,
        answer=(WordVersionAnswer,),
        status=201,
        errors=(404,),
        run=_import,
    ),
    AdminOperation(
        method="GET",
        path=f"{_LIST}/export",
        summary="A version of a word list as a file",
        is_global=True,
        query=ExportQuery,
        answer=(ExportAnswer,),
        errors=(404, 422),
        run=_export,
    ),
    AdminOperation(
        method="POST",
        path=f"{_LIST}/activate",
        summary="Put a version in force, or switch the list off",
        access=_WRITE,
        is_global=True,
        body=ActivationDraft,
        answer=(WordListAnswer,),
        errors=(404,),
        run=_activate,
    ),
    AdminOperation(
        method="POST",
        path=f"{_LIST}/allow",
        summary="Allow a phrase: a new version of the list",
        access=_WRITE,
        is_global=True,
        body=PhraseDraft,
        answer=(WordVersionAnswer,),
        status=201,
        errors=(404,),
        run=_allow,
    ),
    AdminOperation(
        method="POST",
        path=f"{_LIST}/policy",
        summary="Say what a list does for everybody, an organisation, a model or a key",
        access=_WRITE,
        is_global=True,
        body=PolicyDraft,
        answer=(WordPolicyAnswer,),
        errors=(404,),
        run=_set_policy,
    ),
    AdminOperation(
        method="POST",
        path=f"{_LIST}/policy/drop",
        summary="Take back what was said about a list for a scope",
        access=_WRITE,
        is_global=True,
        body=PolicyTarget,
        answer=(DroppedAnswer,),
        errors=(404,),
        run=_drop_policy,
    ),
    AdminOperation(
        method="POST",
        path="/admin/word-test",
        summary="What the word filter makes of a text",
        is_global=True,
        body=TestDraft,
        answer=(WordTestAnswer,),
        errors=(404,),
        run=_test,
    ),
    AdminOperation(
        method="GET",
        path="/admin/reviews",
        summary="Hits that wait for a person, or were decided",
        is_global=True,
        query=ReviewQuery,
        answer=(ReviewPage,),
        errors=(422,),
        run=_reviews,
    ),
    AdminOperation(
        method="GET",
        path=_REVIEW,
        summary="One hit",
        is_global=True,
        answer=(ReviewAnswer,),
        errors=(404,),
        run=_review,
    ),
    AdminOperation(
        method="POST",
        path=f"{_REVIEW}/confirm",
        summary="The hit was right",
        access=_WRITE,
        is_global=True,
        body=DecisionDraft,
        answer=(ReviewAnswer,),
        errors=(404,),
        run=_confirm,
    ),
    AdminOperation(
        method="POST",
        path=f"{_REVIEW}/dismiss",
        summary="The hit was wrong; proposes a phrase to allow",
        access=_WRITE,
        is_global=True,
        body=DecisionDraft,
        answer=(DismissedAnswer,),
        errors=(404,),
        run=_dismiss,
    ),
)
