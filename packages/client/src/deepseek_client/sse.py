"""Server-sent events: bytes to events and back. No I/O.

The format is the WHATWG HTML standard's section 9.2 (server-sent events): UTF-8, an optional byte order mark, lines
that end in LF, CR or CRLF, an event at each blank line.
"""

from collections.abc import Callable
from dataclasses import dataclass

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: keeps proxies and timeouts quiet, gives no event."""

DONE = b"data: [DONE]\n\n"
"""The event that ends a stream of ours, of DeepSeek's and of OpenAI's."""

DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data", b"event", b"id", b"retry")


class SSEError(ValueError):
    """The bytes are not a stream of server-sent events."""


class SSEDecodeError(SSEError):
    """An event is not UTF-8."""


class EventTooLargeError(SSEError):
    """An event, or a line of one, is larger than the parser's limit."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its data lines joined by LF, its name, the last id seen so far, and a reconnection time in ms."""

    data: str
    event: str = "message"
    id: str | None = None
    retry: int | None = None


class SSEParser:
    r"""Turns the bytes of one stream, split anywhere, into events.

    Each byte is looked at once, however small the reads are. An event leaves with the read that holds its blank line,
    also when that line ends in a CR whose LF is still on its way.

    Args:
        max_event_bytes: the most bytes that one event may hold before its blank line; more is EventTooLargeError.
        on_comment: called with the text of each comment line, such as ` keep-alive`.
    """

    def __init__(
        self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES, on_comment: Callable[[str], None] | None = None
    ) -> None:
        self._max_event_bytes = max_event_bytes
        self._on_comment = on_comment
        self._failure: SSEError | None = None
        self._start: bytes | None = b""  # the first bytes, until they can be told from a byte order mark
        self._skip_lf = False  # the last read ended in CR: an LF that follows belongs to it
        self._partial = bytearray()  # the line that has begun: as pieces, those of one byte would take 40 times as much
        self._event_bytes = 0
        self._data: list[bytes] = []
        self._event = ""
        self._last_id: str | None = None
        self._retry: int | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes of the stream.

        Returns:
            the events that they complete, in order.

        Raises:
            SSEDecodeError, EventTooLargeError: from the first call that has no good event to return, and ever after.
        """
        if self._failure is not None:
            raise self._failure
        events: list[ServerSentEvent] = []
        try:
            self._consume(chunk, events)
        except SSEError as error:
            self._failure = error
            if not events:  # events before the fault reach the caller first, wherever the bytes were split
                raise
        return events

    def close(self) -> None:
        """End the stream. An event without its blank line is dropped, as the standard says.

        Raises:
            SSEDecodeError, EventTooLargeError: a fault that `feed` has yet to report.
        """
        self._partial.clear()
        self._data.clear()
        if self._failure is not None:
            raise self._failure

    def _consume(self, chunk: bytes, events: list[ServerSentEvent]) -> None:
        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._start = chunk
                return
            self._start = None
            chunk = chunk.removeprefix(_BOM)
        if not chunk:
            return
        if self._skip_lf and chunk[0] == 0x0A:
            chunk = chunk[1:]
        self._skip_lf = False
        if b"\r" in chunk:
            self._skip_lf = chunk[-1] == 0x0D
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._consume_lines(chunk.split(b"\n"), events)

    def _consume_lines(self, lines: list[bytes], events: list[ServerSentEvent]) -> None:
        rest = lines.pop()
        for line in lines:
            self._count(len(line))
            if self._partial:
                self._partial += line
                line = bytes(self._partial)
                self._partial.clear()
            if line:
                self._field(line)
            else:
                self._dispatch(events)
        if rest:
            self._count(len(rest))
            self._partial += rest

    def _count(self, size: int) -> None:
        self._event_bytes += size
        if self._event_bytes > self._max_event_bytes:
            raise EventTooLargeError(f"an event is larger than max_event_bytes={self._max_event_bytes}")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif not name:
            # Comments keep a stream alive for hours: they must not add up to the limit.
            self._event_bytes -= len(line)
            if self._on_comment is not None:
                self._on_comment(line[1:].decode("utf-8", "replace"))
        elif name == b"event":
            self._event = _decode(value)
        elif name == b"id":
            if b"\0" not in value:
                self._last_id = _decode(value)
        elif name == b"retry" and value.isdigit() and len(value) < 16:
            self._retry = int(value)

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        data, event, retry = self._data, self._event, self._retry
        self._data, self._event, self._retry, self._event_bytes = [], "", None, 0
        if data:
            text = _decode(data[0] if len(data) == 1 else b"\n".join(data))
            events.append(ServerSentEvent(text, event or "message", self._last_id, retry))


def encode_event(data: bytes | str, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002
    """One event as bytes, with LF line ends; each line of `data` becomes a data line.

    Raises:
        ValueError: a line break in `event` or `id`, or a NUL in `id`: a reader would see another event than was meant.
    """
    body = data.encode() if isinstance(data, str) else data
    head = b""
    if event is not None:
        head += _encode_field("event", event)
    if id is not None:
        head += _encode_field("id", id)
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"%bdata: %b\n\n" % (head, body)


def begins_as_events(data: bytes) -> bool:
    """Whether these may be the first bytes of a stream of events, cut anywhere, and not of a page or of plain JSON."""
    line = data.removeprefix(_BOM).lstrip().split(b"\n", 1)[0].rstrip(b"\r")
    name, colon, _ = line.partition(b":")
    return (not name or name in _FIELDS) if colon else any(field.startswith(name) for field in _FIELDS)


def _encode_field(name: str, value: str) -> bytes:
    if any(character in value for character in "\r\n\0"):
        raise ValueError(f"{name}={value!r} holds a line break or a NUL, which cannot be sent in a field")
    return f"{name}: {value}\n".encode()


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise SSEDecodeError(
            f"an event is not UTF-8: {error.reason} at byte {error.start} of {value[:80]!r}"
        ) from error
