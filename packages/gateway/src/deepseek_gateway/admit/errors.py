"""Refusals before any engine was asked. They are told to callers as they are."""

from deepseek_gateway.errors import UpstreamError


class NotAdmittedError(UpstreamError):
    """The request cannot be served now: 503 with Retry-After.

    Args:
        message: for the caller.
        code: `queue_full`, `queue_timeout`, `overloaded` or `shutting_down`.
        retry_after_s: when to try again.
    """

    def __init__(self, message: str, code: str, retry_after_s: float) -> None:
        super().__init__(message, is_unavailable=True, retry_after_s=retry_after_s)
        self.code = code
