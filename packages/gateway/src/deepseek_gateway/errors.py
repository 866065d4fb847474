"""What can go wrong, and the answer each fault gets.

GatewayError
 ├─ ApiError            an answer to a caller: status, message, param, code, headers
 ├─ ConfigurationError  a setting, a file or a store that the gateway cannot start with
 │   └─ StoreError      the store is missing, unmigrated, or belongs to another pepper
 ├─ StoreUnavailableError  the store cannot be reached or written now: it may be later
 ├─ StoreConflictError  a constraint of the store forbids a change
 ├─ StoreValueError     a value that the store cannot hold, now or later
 ├─ StoreSlowError      a report took longer than it may: ask for less
 ├─ JournalError        the journal cannot be written: nothing may be admitted
 └─ UpstreamError       an engine could not be reached, or failed before its answer began
     ├─ UnreachableError  no connection, or one that ended before an answer began
     └─ UpstreamCutError  an answer broke off
"""

from deepseek_client.types import error_body


class GatewayError(Exception):
    """Base of everything that this package raises on purpose."""


class ApiError(GatewayError):
    """A refusal or failure that a caller gets as an error body.

    Args:
        status: HTTP status.
        message: the fault, the value and the way out.
        param: the request field at fault.
        code: for programs, such as `model_not_found`.
        kind: the body's `type`, where it is not the status's usual one.
        headers: extra response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        """The error body as JSON."""
        return (
            error_body(self.status, self.message, param=self.param, code=self.code, kind=self.kind)
            .model_dump_json()
            .encode()
        )


class ConfigurationError(GatewayError):
    """The gateway cannot start like this; the message says what to change."""


class StoreError(ConfigurationError):
    """The store is missing, unmigrated, or does not fit this gateway."""


class StoreUnavailableError(GatewayError):
    """The store cannot be reached, or is busy for too long."""


class StoreConflictError(GatewayError):
    """A constraint of the store forbids a change: something with that name is there, or is still referred to."""


class StoreValueError(GatewayError):
    """A value that the store cannot hold: trying again does not help."""


class StoreSlowError(GatewayError):
    """A report took longer than it may."""


class JournalError(GatewayError):
    """The journal cannot be written."""


class UpstreamError(GatewayError):
    """An engine could not be reached, or failed before its answer began.

    Args:
        message: what happened.
        is_unavailable: it takes no requests now: it said so, or cannot be reached.
        retry_after_s: what the engine asked callers to wait.
    """

    def __init__(self, message: str, *, is_unavailable: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.is_unavailable = is_unavailable
        self.retry_after_s = retry_after_s


class UnreachableError(UpstreamError):
    """There is no connection to an engine, or it ended before an answer began."""


class UpstreamCutError(UpstreamError):
    """The connection to an engine broke, or stayed silent too long, while it answered."""
