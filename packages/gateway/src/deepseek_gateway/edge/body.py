"""Read a request body within a size and a time."""

import asyncio

from starlette.types import Receive, Scope

from deepseek_gateway.edge.context import header
from deepseek_gateway.edge.cycle import caller_of
from deepseek_gateway.edge.watch import CallerGoneError
from deepseek_gateway.errors import ApiError


async def read_body(scope: Scope, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413, it is larger than `max_bytes`; 400, it took longer than `timeout_s`, or is broken.
        CallerGoneError: the caller left before it was complete.
    """
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    caller = caller_of(receive)
    if caller is not None and (whole := caller.whole_body()) is not None:
        if len(whole) > max_bytes:
            raise _too_large(max_bytes)
        return whole
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise ApiError(
            400, f"the body did not arrive within {timeout_s:g} s", headers={"connection": "close"}
        ) from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            caller = caller_of(receive)
            if caller is None or caller.fault is None:
                raise CallerGoneError
            raise ApiError(caller.fault.status, f"the body cannot be read: {caller.fault.message}")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    # The rest of the body is on its way: the connection cannot be used again.
    message = f"the body is larger than {max_bytes} bytes, the most this gateway takes (GATEWAY_MAX_BODY_BYTES)"
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})
