"""Every operation for every kind of caller: the status is the one that the document gives."""

import time

import pytest

from deepseek_gateway.auth.keys import new_key
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.openapi.operation import Operation
from deepseek_gateway.openapi.operations import OPERATIONS
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.testing.caller import Caller, Reply
from deepseek_gateway.testing.stack import OPERATOR, RunningGateway, Stack, running_stack

STRANGERS = ("none", "malformed", "unknown", "other secret", "expired", "revoked", "disabled", "disabled org")
HOLDERS = ("inference", "admin-read", "admin-write", "org-bound admin", "wrong address")


@pytest.fixture
async def stack(state_dir):
    async with running_stack(state_dir, key_cache_ttl_s=0) as running:
        yield running


def make_keys(running: RunningGateway) -> dict[str, str | None]:
    """A key of each kind of caller."""
    gateway = running.gateway
    org = running.org("bound")
    disabled_org = running.org("disabled")
    good = running.key()
    keys: dict[str, str | None] = {
        "none": None,
        "malformed": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "unknown": new_key().text,
        "other secret": new_key(good.split("_")[1]).text,
        "expired": running.key(scopes=["inference", "admin"], expires=time.time() + 0.01),
        "revoked": running.key(scopes=["inference", "admin"]),
        "disabled": running.key(scopes=["inference", "admin"]),
        "disabled org": running.key(scopes=["inference", "admin"], org_id=disabled_org),
        "org-bound admin": running.key(scopes=["admin"], org_id=org),
        "wrong address": running.key(scopes=["inference", "admin"], cidrs=["203.0.113.0/24"]),
        **{scope.value: running.key(scopes=[scope.value]) for scope in Scope},
    }
    gateway.keys.revoke(OPERATOR, str(keys["revoked"]).split("_")[1])
    gateway.keys.set_disabled(OPERATOR, str(keys["disabled"]).split("_")[1], disabled=True)
    gateway.people.set_disabled(OPERATOR, OwnerKind.ORG, disabled_org, disabled=True)
    return keys


def expected(operation: Operation, caller: str) -> set[int]:
    """The statuses that the document allows."""
    if operation.access is None:
        return set(operation.statuses)
    if caller in STRANGERS:
        return {401}
    held = {"org-bound admin": {Scope.ADMIN_READ, Scope.ADMIN_WRITE}, "wrong address": set[Scope]()}
    scopes = held[caller] if caller in held else {Scope(caller)}
    if operation.access not in scopes or (operation.is_global and caller == "org-bound admin"):
        return {403}
    return set(operation.statuses) - {401, 403}


async def ask(caller: Caller, operation: Operation, path: str) -> Reply:
    body = {} if operation.body is not None else None
    async with caller.open(path, body, method=operation.method) as answer:
        return Reply(answer.status, answer.headers, await answer.read())


async def test_each_caller_gets_the_documented_status_of_each_operation(stack: Stack) -> None:
    keys = make_keys(stack.running)
    assert set(keys) == {*STRANGERS, *HOLDERS}
    seen: dict[tuple[str, str], int] = {}
    for operation in OPERATIONS:
        for path in operation.paths:
            filled = "/".join("nobody" if part.startswith("{") else part for part in path.split("/"))
            for caller, key in keys.items():
                reply = await ask(stack.caller.with_key(key), operation, filled)
                assert reply.status in expected(operation, caller), f"{caller}: {operation.method} {path}"
                seen[caller, f"{operation.method} {path}"] = reply.status
    assert seen["admin-read", "GET /admin/keys"] == seen["org-bound admin", "GET /admin/keys"] == 200
    assert seen["admin-write", "GET /admin/keys"] == seen["inference", "GET /admin/keys"] == 403
    assert seen["admin-read", "POST /admin/orgs"] == seen["org-bound admin", "POST /admin/orgs"] == 403
    assert seen["admin-write", "POST /admin/orgs"] == 422
    assert seen["inference", "GET /v1/models"] == 200


async def test_every_route_answers_strangers_with_401_or_is_documented_as_open(stack: Stack) -> None:
    """Routes that are forgotten in the document are found by the test of the document; this one needs none."""
    from deepseek_gateway.app import route_table
    from deepseek_gateway.routes.admin.table import admin_table

    is_open = {path for operation in OPERATIONS if operation.access is None for path in operation.paths}
    for method, path in [*route_table(stack.gateway), *admin_table(stack.gateway)]:
        if path not in is_open and path != "/" and not path.startswith("/ui"):  # pages know sessions, and no keys
            async with stack.caller.with_key(None).open(path, method=method) as answer:
                assert answer.status == 401, f"{method} {path}"
