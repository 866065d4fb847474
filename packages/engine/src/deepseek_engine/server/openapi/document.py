"""The OpenAPI 3.1 document of one server, from its operations and the wire models."""

from collections.abc import Iterable
from functools import cache
from typing import Any, Final, cast

from pydantic.json_schema import models_json_schema

import deepseek_engine
from deepseek_client.types import EmbeddingRequest, ErrorBody, WireModel
from deepseek_client.types.base import SamplingFields
from deepseek_engine.server.metrics import CONTENT_TYPE
from deepseek_engine.server.openapi.limits import LIMITS, LIST_LIMITS, SHAPES
from deepseek_engine.server.openapi.operations import OPERATIONS, Operation

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{model}"
_ABOUT: Final = (
    "Every path is served under /v1, under /beta and without a prefix. Errors have the shape of ErrorBody; once a "
    "stream has begun, an error is an event named `error` with such a body. Unknown fields of a request are ignored."
)
_REASONS: Final = {
    400: "malformed, unsupported, or longer than the context",
    401: "no valid key",
    403: "not allowed on this server",
    404: "no such model",
    413: "the body is too large",
    422: "a value is out of range",
    503: "not now: Retry-After says when",
}
_EMBEDDING_FIELDS: Final = frozenset({"model", "user", "priority", "deadline_s"})
"""Of the fields that generating requests share: those that count for embeddings."""
_BARE_PATHS: Final = ("/health", "/ready", "/metrics", "/version", "/openapi.json")
"""Listed without the prefix, as probes and scrapers ask for them."""


@cache
def build_document(*, has_key: bool) -> Json:
    """The document.

    Args:
        has_key: whether callers need a bearer key.
    """
    document: Json = {
        "openapi": "3.1.0",
        "info": {"title": "DeepSeek engine", "version": deepseek_engine.__version__, "description": _ABOUT},
        "paths": _paths(has_key=has_key),
        "components": {"schemas": _schemas()},
    }
    if has_key:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
    return document


def listed_path(operation: Operation) -> str:
    """The path under which the document has an operation."""
    return operation.path if operation.path in _BARE_PATHS else f"/v1{operation.path}"


def _paths(*, has_key: bool) -> Json:
    paths: Json = {}
    for operation in OPERATIONS:
        entry: Json = {"summary": operation.summary, "operationId": _operation_id(operation)}
        names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
        entry["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
        if operation.request is not None:
            entry["requestBody"] = {"required": True, "content": _json_of(operation.request)}
        is_open = operation.path in ("/health", "/ready")
        if has_key and is_open:
            entry["security"] = []
        entry["responses"] = _responses(operation, needs_key=has_key and not is_open)
        paths.setdefault(listed_path(operation), {})[operation.method.lower()] = entry
    return paths


def _responses(operation: Operation, *, needs_key: bool) -> Json:
    content = _text_of(operation) if operation.answer is None else _json_of(operation.answer)
    described = operation.summary
    if operation.chunk is not None:
        # OpenAPI 3.1 has no way to say what an event holds.
        described += f". With stream: true, events whose data is a {operation.chunk.__name__}, then [DONE]"
        content["text/event-stream"] = {}
    responses: Json = {"200": {"description": described, "content": content}}
    statuses = [*operation.errors, *([401] if needs_key else [])]
    for status in sorted(statuses):
        responses[str(status)] = {"description": _REASONS[status], "content": _json_of(ErrorBody)}
    return responses


def _text_of(operation: Operation) -> Json:
    kind = CONTENT_TYPE.decode() if operation.path == "/metrics" else "text/plain"
    return {kind: {"schema": {"type": "string"}}}


def _json_of(model: type[WireModel]) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _operation_id(operation: Operation) -> str:
    words = operation.path.replace("/", " ").replace(".", " ").replace("{", "").replace("}", "").split()
    return "_".join([operation.method.lower(), *words])


def _schemas() -> Json:
    models: dict[type[WireModel], None] = {ErrorBody: None}
    for operation in OPERATIONS:
        models |= {model: None for model in (operation.request, operation.answer, operation.chunk) if model is not None}
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = cast("dict[str, Json]", definitions["$defs"])
    for model in models:
        if issubclass(model, SamplingFields):
            _state_limits(schemas[model.__name__], model.__name__)
    return schemas


def _state_limits(schema: Json, model: str) -> None:
    """Add ranges to a request's fields, and the fields that the wire model leaves to servers."""
    properties = cast("dict[str, Json]", schema["properties"])
    if model == EmbeddingRequest.__name__:
        for name in set(SamplingFields.model_fields) - _EMBEDDING_FIELDS:
            del properties[name]
    else:
        properties |= {name: {"anyOf": [shape, {"type": "null"}], "default": None} for name, shape in SHAPES.items()}
    for name, field in properties.items():
        for variant in _variants(field):
            variant.update(LIMITS.get(name, {}).get(variant.get("type", ""), {}))
            most = LIST_LIMITS.get((model, name))
            if most is not None and variant.get("type") == "array" and variant["items"].get("type") != "integer":
                variant["maxItems"] = most


def _variants(field: Json) -> Iterable[Json]:
    return field.get("anyOf", [field])
