"""The error body: `{"error": {...}}`, in every answer with a status of 400 or above and in a stream's `error` event."""

from deepseek_client.types.base import WireModel


class ErrorDetail(WireModel):
    """What went wrong, for a person (`message`) and for a program (`type`, `param`, `code`)."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class ErrorBody(WireModel):
    """The whole JSON body of an error."""

    error: ErrorDetail


TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_balance_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large_error",
    422: "invalid_parameter_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "internal_server_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The `type` our servers put beside each status; statuses are DeepSeek's (400 format, 422 parameter, 402 balance)."""


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
) -> ErrorBody:
    """The body for a status; its `type` is the status's own unless `kind` is given."""
    kind = kind or TYPE_OF_STATUS.get(status, "invalid_request_error" if status < 500 else "internal_server_error")
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))
