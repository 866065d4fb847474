"""`/openapi.json` says what there is, and requests made up from it find no fault: no 500, no answer it does not allow.

`FUZZ_EXAMPLES=1000` asks for more than the suite's few requests an operation; `nox -s fuzz` does so.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.openapi import from_dict
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from deepseek_gateway.app import route_table
from deepseek_gateway.auth.drafts import KeyDraft
from deepseek_gateway.auth.service import KeyService
from deepseek_gateway.openapi.document import build_document, listed_path
from deepseek_gateway.openapi.operations import ADMIN, OPERATIONS
from deepseek_gateway.people.service import OrgDraft, PeopleService, TeamDraft, UserDraft
from deepseek_gateway.routes.admin.table import admin_table
from deepseek_gateway.settings import load_settings
from deepseek_gateway.state_dir import open_store, prepare_state
from deepseek_gateway.testing.processes import FAKE_ENGINE, GATEWAY, RunningProcess
from deepseek_gateway.testing.stack import OPERATOR, Stack

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
DOCUMENT = build_document()
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance, unsupported_method]
ADMIN_PATHS = {listed_path(operation) for operation in ADMIN}


class Fuzzed(NamedTuple):
    """A gateway to fuzz, a key that may do everything, and ids of what there is, by the names that paths have."""

    url: str
    headers: dict[str, str]
    ids: dict[str, str]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    """A gateway process in front of the fake engine, and a key that may do everything; its log may hold no failure."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder, RunningProcess(FAKE_ENGINE) as engine:
        state = Path(folder) / "state"
        key, ids = make_people(state)
        serve = ("serve", "--state", str(state), "--port", "0", "--upstream", engine.line("http"))
        with RunningProcess([*GATEWAY, *serve]) as gateway:
            yield Fuzzed(gateway.line("listening on").split()[-1], {"authorization": f"Bearer {key}"}, ids)
            assert gateway.process.poll() is None
            gateway.signal()
            gateway.wait()
            assert "Traceback" not in "\n".join(gateway.errors)


def make_people(state: Path) -> tuple[str, dict[str, str]]:
    """One of everything; gives a key for all, and their ids."""
    loaded = load_settings(state_dir=state)
    prepare_state(loaded)
    store, pepper = open_store(loaded)
    with contextlib.closing(store):
        people, keys = PeopleService(store), KeyService(store, pepper)
        org = people.create_org(OPERATOR, OrgDraft(name="acme")).id
        team = people.create_team(OPERATOR, TeamDraft(name="a", org_id=org)).id
        user = people.create_user(OPERATOR, UserDraft(name="u", team_id=team)).id
        key = keys.create(OPERATOR, KeyDraft(name="k", tags=["a"], user_id=user)).record.public_id
        mighty = keys.create(OPERATOR, KeyDraft(name="fuzz", scopes=["inference", "admin"])).text
    return mighty, {"org_id": org, "team_id": team, "user_id": user, "key_id": key}


def operations() -> list[Any]:
    return [result.ok() for result in from_dict(DOCUMENT).get_all_operations()]


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_no_request_made_from_the_document_finds_a_fault(operation: Any, fuzzed: Fuzzed) -> None:
    is_admin = operation.path in ADMIN_PATHS
    fuzz(operation, GenerationMode.POSITIVE, fuzzed, CHECKS)
    if operation.body or operation.query:
        # What the engine answers for is the engine's to refuse.
        fuzz(operation, GenerationMode.NEGATIVE, fuzzed, [*CHECKS, negative_data_rejection] if is_admin else CHECKS)


def fuzz(operation: Any, mode: GenerationMode, fuzzed: Fuzzed, checks: list[Any]) -> None:
    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_there=st.booleans())
    def run(case: Any, *, is_there: bool) -> None:
        if is_there and case.path_parameters and mode is GenerationMode.POSITIVE:
            case.path_parameters = {**case.path_parameters, **fuzzed.ids}
        response = case.call(base_url=fuzzed.url, headers=fuzzed.headers, timeout=60)
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=checks, headers=fuzzed.headers)

    run()


async def test_every_route_is_in_the_document_and_nothing_else(stack: Stack) -> None:
    """A route that is missing needs an Operation in `openapi/operations.py`; only pages for browsers need none."""
    listed = {(operation.method, path) for operation in OPERATIONS for path in operation.paths}
    routed = {
        (method, path)
        for method, path in [*route_table(stack.gateway), *admin_table(stack.gateway)]
        if path != "/" and not path.startswith("/ui")
    }
    assert routed == listed


async def test_the_gateway_serves_its_document_without_a_key(stack: Stack) -> None:
    reply = await stack.caller.with_key(None).get("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == json.loads(json.dumps(DOCUMENT))
    assert reply.json["openapi"] == "3.1.0"


def test_the_document_says_which_scope_an_operation_needs() -> None:
    assert DOCUMENT["paths"]["/admin/keys"]["get"]["security"] == [{"bearer": ["admin-read"]}]
    assert DOCUMENT["paths"]["/admin/keys"]["post"]["security"] == [{"bearer": ["admin-write"]}]
    assert "security" not in DOCUMENT["paths"]["/health"]["get"]
    names = [entry["operationId"] for path in DOCUMENT["paths"].values() for entry in path.values()]
    assert len(names) == len(set(names))
