"""Any failure to one error body with its status."""

import logging
from typing import Final

import pydantic

from deepseek_client.types import error_body
from deepseek_engine.errors import (
    AdapterError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    QueueFullError,
    UnknownAdapterError,
)

logger = logging.getLogger(__name__)

DEAD_RETRY_AFTER_S: Final = 5
QUEUE_RETRY_AFTER_S: Final = 1
_MAX_MESSAGE_CHARS: Final = 1000
_UNION_TAGS: Final = ("str", "int", "float", "bool", "list[", "dict[", "constrained-", "function-", "literal[")


class ApiError(Exception):
    """An answer with a status of 400 or above."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:_MAX_MESSAGE_CHARS]
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """The JSON body."""
        return error_body(self.status, self.message, param=self.param, code=self.code).model_dump_json().encode()


def unsupported(param: str, message: str) -> ApiError:
    """A known field whose feature this server does not have."""
    return ApiError(400, message, param=param, code="unsupported")


def unavailable(message: str, *, retry_after_s: int = DEAD_RETRY_AFTER_S) -> ApiError:
    """The server cannot take the request now."""
    return ApiError(503, message, retry_after_s=retry_after_s)


def as_api_error(error: Exception) -> ApiError:
    """The answer to an exception; what is not ours to explain becomes a 500 and a log line."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(400, str(error), param=error.param, code="context_length_exceeded")
        case UnknownAdapterError():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case AdapterError():
            return ApiError(400, str(error), param="lora_path")
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param)
        case QueueFullError():
            return unavailable(str(error), retry_after_s=QUEUE_RETRY_AFTER_S)
        case EngineDeadError():
            return unavailable(f"the engine core is gone: {error}")
        case _:
            logger.error("unexpected failure", exc_info=error)
            return ApiError(500, "the server failed on this request; its log has the reason")


def validation_error(error: pydantic.ValidationError) -> ApiError:
    """A body of the wrong shape: 400 that names the first field at fault; values are not repeated."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    # Of a union's members the one that got furthest was meant: `stop: ["a", 3]` is a list with a wrong entry.
    meant = max((item["loc"] for item in problems if item["loc"][:1] == first["loc"][:1]), key=len)
    param = field_path(meant)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['msg']}")
    reasons = dict.fromkeys(item["msg"] for item in problems if field_path(item["loc"]) == param)
    message = ", or ".join(list(reasons)[:4])
    return ApiError(400, f"{param}: {message}" if param else f"the body is wrong: {message}", param=param or None)


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content", "str")` to `messages[0].content`: pydantic adds the names of union members."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (path and part.startswith(_UNION_TAGS)):
            path += f".{part}" if path else part
    return path
