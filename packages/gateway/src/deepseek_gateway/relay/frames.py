"""Server-sent events as raw bytes: cut a stream into whole events without decoding it."""

from deepseek_gateway.errors import UpstreamCutError

DONE_DATA = b"[DONE]"


class FrameSplitter:
    """Gathers bytes and gives whole events, each ending in LF LF.

    CRLF and CR line ends, which JSON cannot hold unescaped, become LF. Bytes that are no UTF-8 become U+FFFD:
    characters are only looked at in whole events, so one that is split over two reads comes out whole.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._was_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; gives the events that they complete.

        Raises:
            UpstreamCutError: an event is larger than the limit.
        """
        if self._was_cr or b"\r" in data:
            data = self._without_cr(data)
        if (frame := self.whole(data)) is not None:
            return [frame]
        frames = (self._rest + data).split(b"\n\n") if self._rest else data.split(b"\n\n")
        self._rest = frames.pop()
        if len(self._rest) > self._max_event_bytes:
            raise UpstreamCutError(f"an event of the engine is larger than {self._max_event_bytes} bytes")
        return [_valid(frame) + b"\n\n" for frame in frames if frame]

    def whole(self, data: bytes) -> bytes | None:
        """Bytes that are one whole event, as engines write them; None for all others, of which nothing is taken."""
        if self._rest or self._was_cr or b"\r" in data or not data.find(b"\n\n") == len(data) - 2 > 0:
            return None
        return data if data.isascii() else _valid(data)

    def _without_cr(self, data: bytes) -> bytes:
        if self._was_cr and data.startswith(b"\n"):  # the CR was a line end already
            data = data[1:]
        self._was_cr = data.endswith(b"\r") if data else self._was_cr
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _valid(frame: bytes) -> bytes:
    if not frame.isascii():
        try:
            frame.decode()
        except UnicodeDecodeError:
            return frame.decode(errors="replace").encode()
    return frame


def data_of(frame: bytes) -> bytes | None:
    """The data of an event, or None for comments and for events that have a name."""
    if frame.startswith(b"data: ") and frame.count(b"\n") == 2:
        return frame[6:-2]
    fields = [line.partition(b":") for line in frame.rstrip(b"\n").split(b"\n")]
    if any(name == b"event" and value.strip() not in {b"", b"message"} for name, _, value in fields):
        return None
    data = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    return b"\n".join(data) if data else None


def is_error_event(frame: bytes) -> bool:
    """Whether an event is named `error`."""
    return any(line.replace(b" ", b"") == b"event:error" for line in frame.split(b"\n"))
