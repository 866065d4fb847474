"""From what a server sent to the exception that says so. Pure; reads every error shape seen in the field.

Shapes: `{"error": {...}}` (ours, DeepSeek, OpenAI), `{"error": "text"}`, flat `{"object": "error", "message", "code"}`
(SGLang), `{"type": "error", "message", "code"}` and `{"type": "response.failed", "response": {"error": {...}}}` (in
streams of Responses), `{"message"}`, `{"detail": "..."}` and `{"detail": [...]}` (FastAPI), a bare string or list,
HTML, nothing.
Classes follow the status, never the `type`: DeepSeek's 402 says `type: unknown_error, code: invalid_request_error`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from deepseek_client.errors import APIStatusError, ContextLengthError, ReasoningContentRequiredError, class_of_status
from deepseek_client.pacing import retry_after_s
from deepseek_client.types.base import TYPE_OF_STATUS

_REQUEST_ID_HEADERS = ("x-request-id", "x-ds-trace-id", "x-deepseek-request-id", "request-id")
_STATUS_OF_CODE = {
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
    "insufficient_balance": 402,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
}
_STATUS_OF_TYPE = {kind: status for status, kind in sorted(TYPE_OF_STATUS.items(), reverse=True)}
_CONTEXT_LENGTH = re.compile(r"context[ _-](length|size|window)|the context is \d+ tokens|maximum allowed length", re.I)
_REASONING_REQUIRED = re.compile(r"reasoning_content.*must be passed back", re.I | re.S)
_KEY_SHAPED = re.compile(r"\b(sk-|dsk_)[A-Za-z0-9_\-]{6,}")
_MAX_EXCERPT = 300
_MAX_SEARCHED = 4096
"""How much of a message is searched: a pattern over megabytes may take minutes."""
_MAX_DEPTH = 16
"""How deep in a body an error is looked for; those of real servers lie four deep."""


@dataclass(frozen=True, slots=True)
class _Fields:
    """What an error body says, whatever its shape."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The id under which the server's logs know the request; header names are in lower case."""
    return next((headers[name] for name in _REQUEST_ID_HEADERS if headers.get(name)), None)


def scrub(text: str, secret: str | None) -> str:
    """The text without the caller's key and without anything shaped like one: servers quote keys in their messages."""
    if secret:
        text = text.replace(secret, "***")
    return _KEY_SHAPED.sub(r"\1***", text)


def excerpt(body: bytes, secret: str | None) -> str:
    """The beginning of a body, on one line, for a message."""
    text = scrub(body[: 4 * _MAX_EXCERPT].decode("utf-8", "replace"), secret)
    return " ".join(text.split())[:_MAX_EXCERPT]


def error_of_response(
    status: int, headers: Mapping[str, str], body: bytes, *, secret: str | None, now_s: float
) -> APIStatusError:
    """The exception for a response with a status outside 2xx.

    Args:
        status: the HTTP status.
        headers: the response's headers, names in lower case.
        body: the response's body.
        secret: the API key in use, to be kept out of messages.
        now_s: the time, in seconds since the epoch, that a Retry-After date is counted from.
    """
    content = _parse(scrub(body.decode("utf-8", "replace"), secret))
    fields = _fields_of(content)
    if not fields.message:
        fields = _Fields(_reason(status, headers, content), fields.type, fields.param, fields.code)
    return _build(status, fields, content, headers, retry_after_s(headers, now_s))


def error_of_event(
    data: str, headers: Mapping[str, str], *, secret: str | None, is_error_event: bool = True
) -> APIStatusError | None:
    """The exception for an error that came where an answer was due: inside a stream, or with status 200.

    Args:
        data: the event's data.
        headers: headers of the response that holds it.
        secret: the API key in use, to be kept out of messages.
        is_error_event: the event is named `error`, so it is one whatever its data looks like.

    Returns:
        None if the data does not look like an error.
    """
    content = _parse(scrub(data, secret))
    if not is_error_event and not _looks_like_an_error(content):
        return None
    fields = _fields_of(content)
    if not fields.message:
        fields = _Fields("the server reported an error without a message", fields.type, fields.param, fields.code)
    return _build(_status_of(fields), fields, content, headers, None)


def _build(
    status: int, fields: _Fields, content: object, headers: Mapping[str, str], retry_after: float | None
) -> APIStatusError:
    cls = class_of_status(status)
    begins = fields.message[:_MAX_SEARCHED]
    if status == 400 and (fields.code == "context_length_exceeded" or _CONTEXT_LENGTH.search(begins)):
        cls = ContextLengthError
    elif status == 400 and _REASONING_REQUIRED.search(begins):
        cls = ReasoningContentRequiredError
    return cls(
        fields.message,
        status_code=status,
        code=fields.code,
        type=fields.type,
        param=fields.param,
        body=content,
        headers=headers,
        request_id=request_id_of(headers),
        retry_after=retry_after,
    )


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # of the latter: thousands of brackets, which are no error of any API
        return text


def _looks_like_an_error(content: object) -> bool:
    if not isinstance(content, dict):
        return False
    body = cast("dict[str, Any]", content)
    return bool(body.get("error")) or body.get("object") == "error" or body.get("type") in ("error", "response.failed")


def _fields_of(content: object, depth: int = _MAX_DEPTH) -> _Fields:
    """Find message, type, param and code in any of the shapes; nested ones by recursion."""
    if depth == 0:
        return _Fields()
    if isinstance(content, dict):
        body = cast("dict[str, Any]", content)
        if body.get("type") == "response.failed":
            return _fields_of(body.get("response"), depth - 1)
        for key in ("error", "detail"):
            if body.get(key):
                inner = _fields_of(body[key], depth - 1)
                return _Fields(
                    inner.message, inner.type, inner.param, inner.code if inner.code is not None else body.get("code")
                )
        message = body.get("message") or body.get("msg")
        location = body.get("loc")
        place = cast("list[Any]", location)[-1:] if isinstance(location, list) else []
        param = body.get("param") or (str(place[0]) if place else None)
        return _Fields(
            message if isinstance(message, str) else "", _text(body.get("type")), _text(param), _code(body.get("code"))
        )
    if isinstance(content, list):
        each = [_fields_of(item, depth - 1) for item in cast("list[object]", content)]
        named = [
            f"{fields.param}: {fields.message}" if fields.param else fields.message for fields in each if fields.message
        ]
        return _Fields("; ".join(named), param=each[0].param if each else None)
    if isinstance(content, str) and "<" not in content[:20]:  # a page of HTML says nothing in one line
        return _Fields(content.strip()[:_MAX_EXCERPT])
    return _Fields()


def _reason(status: int, headers: Mapping[str, str], content: object) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "unknown status"
    if isinstance(content, str) and content.strip():
        kind = headers.get("content-type", "no content type").partition(";")[0]
        return f"{phrase}; the body is {kind}, not an error of the API: is the base URL right?"
    return phrase


def _status_of(fields: _Fields) -> int:
    """The HTTP status that an error inside a stream stands for; 500 if it does not say."""
    code = fields.code
    if isinstance(code, str):
        code = int(code) if code.isdecimal() and len(code) == 3 else _STATUS_OF_CODE.get(code)
    if code is not None and 400 <= code < 600:
        return code
    return _STATUS_OF_TYPE.get(fields.type or "", 500)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _code(value: object) -> str | int | None:
    return value if isinstance(value, str | int) else None
