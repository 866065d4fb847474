"""SSEParser beside a slow reader of the standard, on bytes that Hypothesis makes up and splits anywhere.

FUZZ_SSE_EXAMPLES asks for more than the suite's few hundred streams: `nox -s fuzz_sse -- 1000000`.
"""

import os
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_client.sse import EventTooLargeError, ServerSentEvent, SSEDecodeError, SSEError, SSEParser

NUM_EXAMPLES = int(os.environ.get("FUZZ_SSE_EXAMPLES", "250"))

WORDS = [
    b"data",
    b"data:",
    b"data: ",
    b"event:",
    b"id:",
    b"id: 7\0",
    b"retry:",
    b"retry: 15",
    b"12",
    b":",
    b": x",
    b" ",
]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"]
ODD = [b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xff", "你".encode(), "\u2028".encode(), b"\x85", b"\0", b"[DONE]"]
PIECES = st.one_of(st.sampled_from(WORDS), st.sampled_from(ENDS), st.sampled_from(ODD), st.binary(max_size=4))
STREAMS = st.one_of(st.lists(PIECES, max_size=40).map(b"".join), st.binary(max_size=200))


def lines_of(stream: bytes) -> Iterator[tuple[bytes, bool]]:
    """Each line without its end, and whether it has one: byte by byte."""
    line, position = b"", 0
    while position < len(stream):
        byte = stream[position : position + 1]
        position += 1
        if byte not in (b"\r", b"\n"):
            line += byte
            continue
        if byte == b"\r" and stream[position : position + 1] == b"\n":
            position += 1
        yield line, True
        line = b""
    if line:
        yield line, False


class SlowReader:
    """Events and comments: section 9.2 of the standard, and this parser's two refusals."""

    def __init__(self, limit: int) -> None:
        self.events: list[ServerSentEvent] = []
        self.comments: list[str] = []
        self.limit = limit
        self.last_id: str | None = None
        self.clear()

    def clear(self) -> None:
        self.data: list[bytes] = []
        self.name, self.retry, self.size = "", None, 0

    def read(self, stream: bytes) -> type[SSEError] | None:
        """Take the whole stream; what is wrong with it."""
        try:
            for line, is_whole in lines_of(stream.removeprefix(b"\xef\xbb\xbf")):
                if self.size + len(line) > self.limit:
                    return EventTooLargeError
                if is_whole:
                    self.take(line)
        except UnicodeDecodeError:
            return SSEDecodeError
        return None

    def take(self, line: bytes) -> None:
        if not line:
            if self.data:
                text = b"\n".join(self.data).decode()
                self.events.append(ServerSentEvent(text, self.name or "message", self.last_id, self.retry))
            self.clear()
        elif line.startswith(b":"):
            self.comments.append(line[1:].decode("utf-8", "replace"))
        else:
            self.size += len(line)
            field, _, value = line.partition(b":")
            self.note(field, value.removeprefix(b" "))

    def note(self, field: bytes, value: bytes) -> None:
        if field == b"data":
            self.data.append(value)
        elif field == b"event":
            self.name = value.decode()
        elif field == b"id" and b"\0" not in value:
            self.last_id = value.decode()
        elif field == b"retry" and value and all(byte in b"0123456789" for byte in value) and len(value) < 16:
            self.retry = int(value)


def is_half_a_mark(stream: bytes) -> bool:
    """Whether nothing but the beginning of a byte order mark has come."""
    return len(stream) < 3 and b"\xef\xbb\xbf".startswith(stream)


@settings(max_examples=NUM_EXAMPLES)
@given(stream=STREAMS, limit=st.sampled_from([4, 12, 40, 10_000]), data=st.data())
def test_any_bytes_split_anywhere_are_read_as_the_standard_says(stream: bytes, limit: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    comments: list[str] = []
    parser = SSEParser(limit, comments.append)
    events: list[ServerSentEvent] = []
    failure: type[SSEError] | None = None
    try:
        for piece in pieces:
            events += parser.feed(piece)
        parser.close()
    except SSEError as error:
        failure = type(error)
    slow = SlowReader(limit)
    expected = slow.read(b"" if is_half_a_mark(stream) else stream)
    assert (events, comments, failure) == (slow.events, slow.comments, expected)


@pytest.mark.parametrize("piece", [b"x", b"xy", b"x" * 100, b"data\n", b"data:x\n"])
def test_an_event_without_an_end_takes_bounded_memory_however_it_is_split(piece: bytes) -> None:
    limit = 32 * 1024
    parser = SSEParser(limit)
    source = bytearray(piece)

    def feed_for_ever() -> None:
        while True:
            parser.feed(bytes(source))  # an object of its own, as each read gives one

    tracemalloc.start()
    try:
        with pytest.raises(EventTooLargeError):
            feed_for_ever()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * limit


def test_comments_and_blank_lines_for_ever_take_no_memory() -> None:
    parser = SSEParser(1024)
    tracemalloc.start()
    try:
        for _ in range(5_000):
            parser.feed(b": keep-alive\n\n")
            parser.feed(b"\r\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024
