"""The exception tree: catch `DeepSeekError` for everything, or a branch of it. Each class says when it is raised.

DeepSeekError
├── ConfigurationError
├── APIConnectionError            no answer
│   ├── ConnectError
│   │   └── TLSError
│   └── APITimeoutError           no answer in time; also a TimeoutError
│       ├── ConnectTimeout, PoolTimeout, FirstTokenTimeout, IdleTimeout, DeadlineExceeded
├── APIStatusError                the server said no
│   ├── BadRequestError 400
│   │   ├── ContextLengthError, ReasoningContentRequiredError
│   ├── AuthenticationError 401
│   ├── InsufficientBalanceError 402
│   ├── PermissionDeniedError 403
│   ├── NotFoundError 404
│   ├── ConflictError 409
│   ├── RequestTooLargeError 413
│   ├── UnprocessableEntityError 422
│   ├── RateLimitError 429
│   └── InternalServerError 500 and above
│       ├── OverloadedError 503
│       └── GatewayTimeoutError 504
├── ResponseError                 an answer that cannot be used
│   ├── EmptyResponseError, ResponseValidationError, BlankJSONError
│   └── FinishReasonError         the answer ended before it was whole
│       ├── LengthFinishReasonError, ContentFilterFinishReasonError, ServerResourceError
├── ToolArgumentsError
├── ToolRoundsError
└── StreamError                   `.snapshot` holds what had arrived
    ├── StreamTruncatedError, StreamProtocolError, StreamClosedError

An error inside a stream is of the class that its status would have given before the stream began.
"""

from collections.abc import Mapping
from typing import Any, Literal

Phase = Literal["connect", "pool", "write", "first_token", "idle", "total"]


class DeepSeekError(Exception):
    """Any failure that this package raises. Picklable.

    Attributes:
        message: what went wrong, without the ids that `str()` adds.
        request_id: the server's or the gateway's id of the request, for its logs; None if no answer came.
        retries_taken: how often the request had been sent again.
        elapsed: seconds since the call began, waits included; None where nothing was sent.
        snapshot: what had arrived of a stream (a Generation, ChatCompletion or Completion), or None.
    """

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.retries_taken = 0
        self.elapsed: float | None = None
        self.snapshot: Any = None

    @property
    def partial_text(self) -> str:
        """The text that had arrived before the failure; empty if none had."""
        if self.snapshot is None:
            return ""
        if hasattr(self.snapshot, "output_text"):
            return self.snapshot.output_text
        if hasattr(self.snapshot, "choices"):
            choice = self.snapshot.choices[0] if self.snapshot.choices else None
            text = getattr(choice, "text", None) or getattr(getattr(choice, "message", None), "content", None)
            return text or ""
        return self.snapshot.text

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__.copy())


def _restore(cls: type[DeepSeekError], args: tuple[Any, ...], state: dict[str, Any]) -> DeepSeekError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(DeepSeekError, ValueError):
    """A setting cannot work; nothing was sent."""


class APIConnectionError(DeepSeekError):
    """The server could not be reached, or the connection broke before the answer was complete."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """A limit of `Timeout` passed; `phase` names it: connect, pool, write, first_token, idle, total."""

    def __init__(self, message: str, *, phase: Phase, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.phase: Phase = phase


class ConnectError(APIConnectionError):
    """The server could not be reached: refused, no such host, no route."""


class TLSError(ConnectError):
    """The connection could not be made secure: an unknown or expired certificate, another host's, no TLS at all."""


class ConnectTimeout(APITimeoutError):  # noqa: N818
    """The server could not be reached in `connect_s`."""


class PoolTimeout(APITimeoutError):  # noqa: N818
    """No connection was free, or no place among the client's `max_concurrency` requests."""


class FirstTokenTimeout(APITimeoutError):  # noqa: N818
    """No data within `first_token_s`."""


class IdleTimeout(APITimeoutError):  # noqa: N818
    """No data for `idle_s` in the middle of a stream."""


class DeadlineExceeded(APITimeoutError):  # noqa: N818
    """The whole call took longer than `total_s`."""


CLASS_OF_PHASE: dict[Phase, type[APITimeoutError]] = {
    "connect": ConnectTimeout,
    "pool": PoolTimeout,
    "first_token": FirstTokenTimeout,
    "idle": IdleTimeout,
    "total": DeadlineExceeded,
}
"""The class that a timeout is raised as; one while the request was being sent has none of its own."""


class APIStatusError(DeepSeekError):
    """The server refused or failed; one subclass for each status that a caller may want to tell apart.

    Attributes:
        status_code: the HTTP status, or the one that an error inside a stream stands for.
        code, type, param: the fields of the error body, None where the server sent none.
        body: the error body as it came: parsed JSON, or text.
        headers: the response's headers, names in lower case.
        retry_after: seconds the server asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        code: str | int | None = None,
        type: str | None = None,  # noqa: A002 (the wire's name)
        param: str | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status_code = status_code
        self.code = code
        self.type = type
        self.param = param
        self.body = body
        self.headers = dict(headers or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        code = f" {self.code}" if self.code is not None else ""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.status_code}{code}: {self.message}{request}"


class BadRequestError(APIStatusError):
    """400: malformed, or it asks for what the server cannot do."""


class ContextLengthError(BadRequestError):
    """400: the prompt and max_tokens do not fit the model's context."""


class ReasoningContentRequiredError(BadRequestError):
    """400: DeepSeek wants the `reasoning_content` of a turn that called tools back; `run_tools` keeps it."""


class AuthenticationError(APIStatusError):
    """401: no key, or one that the server does not know."""


class InsufficientBalanceError(APIStatusError):
    """402: the account's balance or the key's token budget is used up."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such route or model."""


class ConflictError(APIStatusError):
    """409."""


class RequestTooLargeError(APIStatusError):
    """413: the body is larger than the server takes."""


class UnprocessableEntityError(APIStatusError):
    """422: a parameter's value is out of range; `param` names it."""


class RateLimitError(APIStatusError):
    """429: too many requests or tokens; `retry_after` says when to try again."""


class InternalServerError(APIStatusError):
    """500 and above: the server's fault."""


class OverloadedError(InternalServerError):
    """503: overloaded, starting or shutting down."""


class GatewayTimeoutError(InternalServerError):
    """504: a proxy or gateway waited too long for the server behind it."""


class ResponseError(DeepSeekError):
    """The server answered with success, but the answer cannot be used."""


class EmptyResponseError(ResponseError):
    """Status 200 with a blank body: what DeepSeek sends when a request was queued and then dropped."""


class ResponseValidationError(ResponseError):
    """The body is not the JSON that the contract, or the type to parse to, names."""


class BlankJSONError(ResponseError):
    """JSON was asked for and only blanks came: what DeepSeek sends in place of output that is no JSON."""


class FinishReasonError(ResponseError):
    """An answer that was to be parsed ended early; `snapshot` is the completion, `partial_text` what it says.

    Attributes:
        finish_reason: why it ended.
    """

    def __init__(self, message: str, *, finish_reason: str, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.finish_reason = finish_reason


class LengthFinishReasonError(FinishReasonError):
    """`length`: max_tokens, which reasoning counts towards, or the context is used up."""


class ContentFilterFinishReasonError(FinishReasonError):
    """`content_filter`: the server cut the answer off."""


class ServerResourceError(FinishReasonError):
    """`insufficient_system_resource`, `aborted` or `abort`: the server gave up; try again."""


class ToolArgumentsError(DeepSeekError, ValueError):
    """What a model wrote as a function's arguments is no JSON, or does not fit the function."""


class ToolRoundsError(DeepSeekError):
    """A model kept calling tools; `snapshot` is its last answer.

    Attributes:
        messages: the conversation so far.
    """

    def __init__(self, message: str, *, messages: list[dict[str, Any]], request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.messages = messages


class StreamError(DeepSeekError):
    """A stream broke; `snapshot` and `partial_text` hold what had arrived."""


class StreamTruncatedError(StreamError):
    """The stream ended before the answer did."""


class StreamProtocolError(StreamError):
    """What came is not a stream of server-sent events."""


class StreamClosedError(StreamError):
    """The stream was closed or cancelled before its end, so that there is no whole answer."""


CLASS_OF_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: RequestTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    503: OverloadedError,
    504: GatewayTimeoutError,
}


def class_of_status(status: int) -> type[APIStatusError]:
    """The class that a status is raised as."""
    return CLASS_OF_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)
