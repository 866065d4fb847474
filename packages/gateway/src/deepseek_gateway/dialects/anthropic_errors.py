"""Anthropic's error shape: `{"type": "error", "error": {"type", "message"}}`, and `ping` events for silences."""

from typing import Any

import orjson

from deepseek_client.sse import encode_event
from deepseek_gateway.edge.error_shape import ErrorShape
from deepseek_gateway.errors import ApiError

PING = encode_event(b'{"type":"ping"}', event="ping")

TYPE_OF_STATUS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""The `type` beside each status. There is no field for `param`: the message names the field."""


class AnthropicErrors:
    """Errors of /v1/messages."""

    keep_alive = PING
    id_header = b"request-id"

    def body(self, error: ApiError) -> bytes:
        """The error body."""
        message = error.message
        if error.param is not None and error.param not in message:
            message = f"{error.param}: {message}"
        return anthropic_error(error.status, message)

    def relayed(self, status: int, body: bytes) -> bytes:
        """The engine's message in Anthropic's shape."""
        return anthropic_error(status, message_in(body) or "the engine refuses this request")

    def event(self, body: bytes) -> bytes:
        """An event named `error`."""
        return encode_event(body, event="error")


ANTHROPIC_ERRORS: ErrorShape = AnthropicErrors()


def anthropic_error(status: int, message: str) -> bytes:
    """A body."""
    kind = TYPE_OF_STATUS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def message_in(body: bytes) -> str | None:
    """The message of an error body as engines write it, with the field at fault."""
    try:
        error: Any = orjson.loads(body)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return message if not isinstance(param, str) or param in message else f"{param}: {message}"
