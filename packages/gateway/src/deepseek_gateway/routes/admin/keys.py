"""/admin/keys."""

import time
from typing import Annotated, Final

from pydantic import Field

from deepseek_gateway.auth.drafts import KeyChanges, KeyDraft
from deepseek_gateway.auth.fields import Draft, Id, Tag
from deepseek_gateway.auth.records import KeyRecord, Scope
from deepseek_gateway.auth.service import MAX_GRACE_S, IssuedKey
from deepseek_gateway.routes.admin.answers import IssuedKeyAnswer, IssuedKeyList, KeyAnswer, KeyPage
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation
from deepseek_gateway.routes.admin.paging import PageQuery, page_of
from deepseek_gateway.storage.keys import KeyFilter, KeyState

MAX_COUNT: Final = 10_000


class KeyQuery(PageQuery):
    """Which keys: those for which all that is given holds."""

    org_id: Id | None = None
    team_id: Id | None = None
    user_id: Id | None = None
    tag: Tag | None = None
    state: KeyState | None = None


class NewKeys(KeyDraft):
    """A new key; or, with `count`, so many with a number behind their names."""

    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None


class Rotation(Draft):
    """How long the old secret works on."""

    grace_s: Annotated[float, Field(ge=0, le=MAX_GRACE_S, allow_inf_nan=False)] = 86400.0


def _list(call: AdminCall) -> object:
    query: KeyQuery = call.query
    wanted = KeyFilter(**query.model_dump(exclude={"cursor", "limit"}))
    records, after = call.gateway.keys.page(call.by, wanted, after=query.after, limit=query.limit)
    return page_of([_json(record) for record in records], after)


def _create(call: AdminCall) -> object:
    new: NewKeys = call.body
    issued = [_issued(key) for key in call.gateway.keys.create_many(call.by, new, new.count)]
    return issued[0] if new.count is None else {"data": issued}


def _get(call: AdminCall) -> object:
    return _json(call.gateway.keys.get(call.by, call.names["key_id"]))


def _change(call: AdminCall) -> object:
    return _json(call.gateway.keys.change(call.by, call.names["key_id"], call.body))


def _rotate(call: AdminCall) -> object:
    return _issued(call.gateway.keys.rotate(call.by, call.names["key_id"], call.body.grace_s))


def _disable(call: AdminCall) -> object:
    return _json(call.gateway.keys.set_disabled(call.by, call.names["key_id"], disabled=True))


def _enable(call: AdminCall) -> object:
    return _json(call.gateway.keys.set_disabled(call.by, call.names["key_id"], disabled=False))


def _revoke(call: AdminCall) -> object:
    return _json(call.gateway.keys.revoke(call.by, call.names["key_id"]))


def _delete(call: AdminCall) -> object:
    return _json(call.gateway.keys.delete(call.by, call.names["key_id"]))


def _json(record: KeyRecord) -> dict[str, object]:
    return record.to_json(time.time())


def _issued(key: IssuedKey) -> dict[str, object]:
    return {"key": key.text, **_json(key.record)}


_ONE: Final = "/admin/keys/{key_id}"
_WRITE: Final = Scope.ADMIN_WRITE
OPERATIONS: Final = (
    AdminOperation(
        method="GET",
        path="/admin/keys",
        summary="Keys, page by page",
        query=KeyQuery,
        answer=(KeyPage,),
        errors=(422,),
        run=_list,
    ),
    AdminOperation(
        method="POST",
        path="/admin/keys",
        summary="Issue a key, or many with `count`; their texts are shown here and never again",
        access=_WRITE,
        body=NewKeys,
        answer=(IssuedKeyAnswer, IssuedKeyList),
        status=201,
        errors=(409,),
        run=_create,
    ),
    AdminOperation(method="GET", path=_ONE, summary="One key", answer=(KeyAnswer,), errors=(404,), run=_get),
    AdminOperation(
        method="PATCH",
        path=_ONE,
        summary="Change what is given; the rest stays",
        access=_WRITE,
        body=KeyChanges,
        answer=(KeyAnswer,),
        errors=(404, 409),
        run=_change,
    ),
    AdminOperation(
        method="DELETE",
        path=_ONE,
        summary="Delete a key that was never used",
        access=_WRITE,
        answer=(KeyAnswer,),
        errors=(404, 409),
        run=_delete,
    ),
    AdminOperation(
        method="POST",
        path=f"{_ONE}/rotate",
        summary="A new secret; the old one works on for `grace_s`",
        access=_WRITE,
        body=Rotation,
        answer=(IssuedKeyAnswer,),
        errors=(404, 409),
        run=_rotate,
    ),
    AdminOperation(
        method="POST",
        path=f"{_ONE}/disable",
        summary="Let a key rest",
        access=_WRITE,
        answer=(KeyAnswer,),
        errors=(404, 409),
        run=_disable,
    ),
    AdminOperation(
        method="POST",
        path=f"{_ONE}/enable",
        summary="Let a key work again",
        access=_WRITE,
        answer=(KeyAnswer,),
        errors=(404, 409),
        run=_enable,
    ),
    AdminOperation(
        method="POST",
        path=f"{_ONE}/revoke",
        summary="End a key for good",
        access=_WRITE,
        answer=(KeyAnswer,),
        errors=(404, 409),
        run=_revoke,
    ),
)
