"""What a request's headers ask of replaying."""

import hashlib
from dataclasses import dataclass

from starlette.types import Scope

from deepseek_gateway.edge.context import header, headers_of
from deepseek_gateway.errors import ApiError

MAX_KEY_CHARS = 255

_NAMES = frozenset({b"idempotency-key", b"last-event-id", b"x-resumable"})


@dataclass(frozen=True, slots=True)
class ReplayWish:
    """At least one of the three is there.

    Attributes:
        key: the Idempotency-Key: a retry with it gets the first request's answer.
        resume: the request and the number of the last event that the caller saw (Last-Event-ID).
        numbered: number the stream's events, so that it can be resumed (X-Resumable).
    """

    key: str | None
    resume: tuple[str, int] | None
    numbered: bool


def replay_wish(scope: Scope) -> ReplayWish | None:
    """The wish of a request; None for most.

    Raises:
        ApiError: 400, a header is malformed.
    """
    if _NAMES.isdisjoint(headers_of(scope)):
        return None
    key, last = header(scope, b"idempotency-key"), header(scope, b"last-event-id")
    numbered = (header(scope, b"x-resumable") or "").strip().lower() in {"1", "true", "yes"}
    if key is None and last is None and not numbered:
        return None
    return ReplayWish(None if key is None else _checked(key), None if last is None else _parse(last), numbered)


def digest_of(route: str, body: bytes) -> bytes:
    """What tells one request's content from another's."""
    return hashlib.sha256(route.encode() + b"\0" + body).digest()


def event_id(request_id: str, number: int) -> bytes:
    """The id of a stream's event."""
    return f"{request_id}:{number}".encode()


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        message = f"Idempotency-Key has {len(key)} characters: give 1 to {MAX_KEY_CHARS} printable ASCII characters"
        raise ApiError(400, message, param="Idempotency-Key")
    return key


def _parse(last: str) -> tuple[str, int]:
    request_id, _, number = last.strip().rpartition(":")
    if not request_id or not (number.isascii() and number.isdigit()) or len(last) > MAX_KEY_CHARS:
        message = f"Last-Event-ID={last[:80]!r} is no id of a stream's event: send the last `id:` that you saw"
        raise ApiError(400, message, param="Last-Event-ID")
    return request_id, int(number)
