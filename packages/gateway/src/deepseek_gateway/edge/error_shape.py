"""How a dialect writes its errors. The gateway raises one kind of error; each dialect's callers read their own."""

from typing import Protocol

from deepseek_client.sse import KEEP_ALIVE, encode_event
from deepseek_gateway.errors import ApiError


class ErrorShape(Protocol):
    """What a caller gets to see of a failure, and of a silence."""

    @property
    def id_header(self) -> bytes | None:
        """A header for the request's id besides x-request-id."""
        ...

    @property
    def keep_alive(self) -> bytes:
        """What a silent stream carries."""
        ...

    def body(self, error: ApiError) -> bytes:
        """The body of an error of ours."""
        ...

    def relayed(self, status: int, body: bytes) -> bytes:
        """The body for an engine's own error body."""
        ...

    def event(self, body: bytes) -> bytes:
        """An event, for a stream that has begun, of a body in this shape."""
        ...


class OpenAIErrors:
    """`{"error": {"message", "type", "param", "code"}}`, the engine's own shape."""

    id_header = None
    keep_alive = KEEP_ALIVE

    def body(self, error: ApiError) -> bytes:
        """The error body."""
        return error.body

    def relayed(self, status: int, body: bytes) -> bytes:  # noqa: ARG002  the engine speaks this shape
        """The engine's body as it is."""
        return body

    def event(self, body: bytes) -> bytes:
        """An event named `error`."""
        return encode_event(body, event="error")


OPENAI_ERRORS: ErrorShape = OpenAIErrors()
