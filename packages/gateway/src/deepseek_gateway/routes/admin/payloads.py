"""/admin/payload-policies, /admin/requests/{id}/payload and /admin/erasures: kept texts."""

from typing import Annotated, Final, Literal

from pydantic import Field

from deepseek_gateway.audit.payload import Policy
from deepseek_gateway.audit.retention import MAX_DAYS, RetentionService
from deepseek_gateway.auth.fields import Draft, Id
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.routes.admin.audit_answers import PolicyAnswer, PolicyList, ProofAnswer, TextsAnswer
from deepseek_gateway.routes.admin.operation import AdminCall, AdminOperation


class OldPolicy(Draft):
    """Which policy to remove."""

    kind: Literal["org", "key"]
    id: Id


class NewPolicy(OldPolicy):
    """Keep texts of a key, or of an organisation's keys; with 0 days not, whatever the organisation's policy says."""

    days: Annotated[int, Field(ge=0, le=MAX_DAYS)]
    mask_pii: bool = False


class Erasure(Draft):
    """Whose texts to destroy."""

    subject: Annotated[str, Field(max_length=100, pattern=r"^(user|key):[0-9A-Za-z_.-]+$")]


def _service(call: AdminCall) -> RetentionService:
    return RetentionService(call.gateway.store, call.gateway.payloads.vault)


def _shown(kind: str, name: str, policy: Policy) -> dict[str, object]:
    return {"kind": kind, "id": name, "days": policy.days, "mask_pii": policy.mask_pii}


def _policies(call: AdminCall) -> object:
    policies = _service(call).policies(call.by)
    return {"data": [_shown(kind, name, policy) for (kind, name), policy in policies.items()]}


def _set(call: AdminCall) -> object:
    new: NewPolicy = call.body
    policy = _service(call).set_policy(call.by, new.kind, new.id, Policy(new.days, new.mask_pii))
    return _shown(new.kind, new.id, policy)


def _remove(call: AdminCall) -> object:
    old: OldPolicy = call.body
    return _shown(old.kind, old.id, _service(call).remove_policy(call.by, old.kind, old.id))


def _show(call: AdminCall) -> object:
    return _service(call).show(call.by, call.names["request_id"])


def _erase(call: AdminCall) -> object:
    erasure: Erasure = call.body
    return _service(call).erase(call.by, erasure.subject)


OPERATIONS: Final = (
    AdminOperation(
        method="GET",
        path="/admin/payload-policies",
        summary="Whose prompts and answers are kept",
        is_global=True,
        answer=(PolicyList,),
        run=_policies,
    ),
    AdminOperation(
        method="POST",
        path="/admin/payload-policies",
        summary="Keep texts of a key or an organisation for some days",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        body=NewPolicy,
        answer=(PolicyAnswer,),
        errors=(404,),
        run=_set,
    ),
    AdminOperation(
        method="POST",
        path="/admin/payload-policies/remove",
        summary="Keep no more texts of a key or an organisation; what is kept stays until its days are over",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        body=OldPolicy,
        answer=(PolicyAnswer,),
        errors=(404,),
        run=_remove,
    ),
    AdminOperation(
        method="GET",
        path="/admin/requests/{request_id}/payload",
        summary="What was asked and answered, where it is kept; the audit log tells who read it",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        answer=(TextsAnswer,),
        errors=(404, 410),
        run=_show,
    ),
    AdminOperation(
        method="POST",
        path="/admin/erasures",
        summary="Destroy the kept texts of a user (`user:ID`) or of a key without one (`key:ID`); answers with a proof",
        access=Scope.ADMIN_WRITE,
        is_global=True,
        body=Erasure,
        answer=(ProofAnswer,),
        errors=(404,),
        run=_erase,
    ),
)
