"""An operation of the admin API, and the route that serves it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from deepseek_gateway.auth.fields import refusal
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.openapi.operation import Operation
from deepseek_gateway.routes.access import administrator

MAX_BODY_BYTES = 2**20
MAX_PARAMETERS = 100
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One checked request: who asks, what stands in the path, and the models of query and body."""

    gateway: Gateway
    by: Principal
    names: Mapping[str, str]
    query: Any
    body: Any


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """An answer that is no JSON."""

    text: str
    media_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOperation(Operation):
    """An operation with what it does: `run` is called in a thread, and gives the answer's JSON, or a `TextAnswer`."""

    access: KeyScope | None = KeyScope.ADMIN_READ
    max_body_bytes: int = MAX_BODY_BYTES
    run: Callable[[AdminCall], object]


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """Serves one operation."""

    gateway: Gateway
    operation: AdminOperation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: the key first, so that a stranger learns nothing of what a body should hold."""
        operation = self.operation
        context_of(scope).route = operation.path
        assert operation.access is not None
        by = await administrator(self.gateway, scope, operation.access)
        if operation.is_global:
            by.require_everything()
        query = None if operation.query is None else _query(operation.query, scope["query_string"])
        body = None
        if operation.body is not None:
            most = min(operation.max_body_bytes, self.gateway.settings.max_body_bytes)
            raw = await read_body(scope, receive, most, self.gateway.settings.body_timeout_s)
            body = _body(operation.body, raw)
        call = AdminCall(self.gateway, by, scope["path_params"], query, body)
        answer = await asyncio.to_thread(operation.run, call)
        # An answer may hold a key: nothing on the way may keep it.
        headers = {"cache-control": "no-store"}
        if isinstance(answer, TextAnswer):
            kind, headers = answer.media_type.encode("latin-1"), {**answer.headers, **headers}
            await send_body(send, operation.status, answer.text.encode(), kind, headers)
        else:
            await send_body(send, operation.status, orjson.dumps(answer), headers=headers)


def _query(model: type[Model], query: bytes) -> Model:
    """Read parameters.

    Raises:
        ApiError: 422, one is unknown, given twice, or wrong; or there are too many.
    """
    if query.count(b"&") >= MAX_PARAMETERS:
        raise ApiError(422, f"the query has more than {MAX_PARAMETERS} parameters")
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace")
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise ApiError(422, f"{name[:80]} is given twice", param=name[:80])
        given[name] = value
    try:
        return model.model_validate_strings(given)
    except ValidationError as error:
        raise refusal(error) from None


def _body(model: type[Model], raw: bytes) -> Model:
    """Read a body; an empty one is an empty object.

    Raises:
        ApiError: 400, it is not JSON; 422, a field is unknown or wrong.
    """
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        fault = cast("dict[str, Any]", error.errors(include_url=False, include_context=False, include_input=False)[0])
        if fault["type"] == "json_invalid":
            raise ApiError(400, f"the body is not valid JSON: {fault['msg']}", code="invalid_json") from None
        raise refusal(error) from None
