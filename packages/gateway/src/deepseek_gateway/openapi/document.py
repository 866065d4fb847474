"""The OpenAPI 3.1 document, from the operations and their models."""

import re
from functools import cache
from typing import Any, Final, cast

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import deepseek_gateway
from deepseek_gateway.openapi.operation import Operation
from deepseek_gateway.openapi.operations import OPERATIONS

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{model}"
_ABOUT: Final = (
    "Keys go into `Authorization: Bearer dsk_…`. Errors have the shape of ErrorBody, but for Anthropic's Messages API, "
    "which has its own; once a stream has begun, an error is an event named `error`. Requests for text pass to the "
    "engine with all their fields, and ranges are checked there; the admin API refuses fields that it does not know. "
    "`x-aliases` are other paths of the same operation."
)
_REASONS: Final = {
    400: "malformed",
    401: "no valid key: missing, malformed, unknown, expired, disabled or revoked",
    402: "a budget is used up",
    403: "the key is for something else, may not be used from this address, or may not use this model",
    404: "not found, or out of the key's reach",
    410: "erased",
    409: "the state of things forbids it",
    413: "the body is too large",
    422: "a field is unknown or wrong; `param` names it",
    429: "a limit is reached: Retry-After says when to try again",
    502: "the engine failed",
    503: "not now: Retry-After says when",
}


@cache
def document_bytes() -> bytes:
    """The document as it is served."""
    return orjson.dumps(build_document())


@cache
def build_document() -> Json:
    """The document."""
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(listed_path(operation), {})[operation.method.lower()] = _entry(operation)
    bearer = {"type": "http", "scheme": "bearer", "description": "a key of this gateway; the list names its scope"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "DeepSeek gateway", "version": deepseek_gateway.__version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"bearer": bearer}},
    }


def listed_path(operation: Operation) -> str:
    """The path under which the document has an operation."""
    return operation.path.replace("...}", "}")


def _entry(operation: Operation) -> Json:
    entry: Json = {"summary": operation.summary, "operationId": _operation_id(operation)}
    entry["parameters"] = [*_path_parameters(operation), *_query_parameters(operation)]
    if operation.aliases:
        entry["x-aliases"] = [alias.replace("...}", "}") for alias in operation.aliases]
    if operation.access is not None:
        entry["security"] = [{"bearer": [operation.access.value]}]
    if operation.is_global:
        entry["description"] = "Not for keys that belong to an organisation."
    if operation.body is not None:
        is_required = any(field.is_required() for field in operation.body.model_fields.values())
        entry["requestBody"] = {"required": is_required, "content": _json_of(operation.body)}
    entry["responses"] = _responses(operation)
    return entry


def _path_parameters(operation: Operation) -> list[Json]:
    shape = {"type": "string", "minLength": 1}
    names = re.findall(r"{(\w+)}", listed_path(operation))
    return [{"name": name, "in": "path", "required": True, "schema": shape} for name in names]


def _query_parameters(operation: Operation) -> list[Json]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema(ref_template=_REF)
    parameters: list[Json] = []
    for name, field in cast("dict[str, Json]", schema["properties"]).items():
        # A parameter that is left out is null; it cannot be given as null.
        shapes = [shape for shape in field.get("anyOf", [field]) if shape.get("type") != "null"]
        parameters.append({"name": name, "in": "query", "required": False, "schema": shapes[0]})
    return parameters


def _responses(operation: Operation) -> Json:
    content: Json = {operation.media_type: {"schema": {"type": "string"}}}
    if operation.answer:
        content = _json_of(*operation.answer)
    if operation.also is not None:
        content[operation.also] = {"schema": {"type": "string"}}
    described = operation.summary
    if operation.chunk is not None:
        # OpenAPI 3.1 has no way to say what an event holds.
        described += f". With stream: true, events whose data is a {operation.chunk.__name__}"
        content["text/event-stream"] = {}
    responses: Json = {str(operation.status): {"description": described, "content": content}}
    for status in sorted(operation.statuses - {operation.status}):
        responses[str(status)] = {"description": _REASONS[status], "content": _json_of(operation.error)}
    return responses


def _json_of(*models: type[BaseModel]) -> Json:
    refs = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", listed_path(operation))
    return "_".join([operation.method.lower(), *(word for word in words if word != "v1")])


def _schemas() -> Json:
    models: dict[type[BaseModel], None] = {}
    for operation in OPERATIONS:
        for model in (operation.body, operation.chunk, operation.error, *operation.answer):
            if model is not None:
                models[model] = None
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    return cast("Json", definitions["$defs"])
