"""SSEParser reads what the standard says, wherever the bytes are split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_client.sse import (
    DONE,
    KEEP_ALIVE,
    EventTooLargeError,
    ServerSentEvent,
    SSEDecodeError,
    SSEError,
    SSEParser,
    encode_event,
)

CASES: dict[str, tuple[bytes, list[ServerSentEvent]]] = {
    "one event": (b"data: hello\n\n", [ServerSentEvent("hello")]),
    "no space after the colon": (b"data:hello\n\n", [ServerSentEvent("hello")]),
    "only one space is cut": (b"data:  hello\n\n", [ServerSentEvent(" hello")]),
    "several data lines": (b"data: a\ndata: b\n\n", [ServerSentEvent("a\nb")]),
    "crlf": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [ServerSentEvent("a\nb"), ServerSentEvent("c")]),
    "cr": (b"data: a\rdata: b\r\rdata: c\r\r", [ServerSentEvent("a\nb"), ServerSentEvent("c")]),
    "mixed line ends": (b"data: a\r\ndata: b\rdata: c\n\r\n", [ServerSentEvent("a\nb\nc")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [ServerSentEvent("a")]),
    "second byte order mark is a name": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "half a byte order mark is a name": (b"\xef\xbbdata: a\n\ndata: b\n\n", [ServerSentEvent("b")]),
    "comments": (b": one\n\n:two\ndata: a\n: three\n\n", [ServerSentEvent("a")]),
    "only retry": (b"retry: 100\n\ndata: a\n\n", [ServerSentEvent("a")]),
    "only id": (b"id: 7\n\ndata: a\n\n", [ServerSentEvent("a", id="7")]),
    "only event": (b"event: x\n\ndata: a\n\n", [ServerSentEvent("a")]),
    "everything": (
        b"event: x\nid: 7\nretry: 9\ndata: a\n\ndata: b\n\n",
        [ServerSentEvent("a", "x", "7", 9), ServerSentEvent("b", id="7")],
    ),
    "bad retry": (b"retry: 1s\ndata: a\n\n", [ServerSentEvent("a")]),
    "id with NUL": (b"id: 7\0\ndata: a\n\n", [ServerSentEvent("a")]),
    "field without a colon": (b"data\n\n", [ServerSentEvent("")]),
    "unknown field": (b"foo: bar\ndata: a\n\n", [ServerSentEvent("a")]),
    "colon in the value": (b'data: {"a": 1}\n\n', [ServerSentEvent('{"a": 1}')]),
    "unicode": ("data: 你好 é \u2028 😀\n\n".encode(), [ServerSentEvent("你好 é \u2028 😀")]),
    "no blank line at the end": (b"data: a\n\ndata: b\n", [ServerSentEvent("a")]),
    "empty": (b"", []),
}


def parse(pieces: list[bytes]) -> list[ServerSentEvent]:
    parser = SSEParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    parser.close()
    return events


@pytest.mark.parametrize("name", CASES)
def test_the_standard_s_cases_parse_the_same_at_every_split(name: str) -> None:
    stream, expected = CASES[name]
    assert parse([stream]) == expected
    assert parse([bytes([byte]) for byte in stream]) == expected
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            assert parse([stream[:first], stream[first:second], stream[second:]]) == expected


LINES = st.sampled_from(
    [
        b"data: x",
        b"data:",
        b"data: \xe4\xbd\xa0",
        b"id: 1",
        b"event: e",
        b": c",
        b"retry: 5",
        b"",
        b"",
        b"zz",
        b"\xef\xbb\xbf",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"]))).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(stream=STREAMS, data=st.data())
def test_any_split_of_any_stream_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(pieces) == parse([stream])


@given(
    events=st.lists(
        st.builds(
            ServerSentEvent,
            data=st.text().map(lambda text: text.replace("\r", "")),
            event=st.text(alphabet=st.characters(exclude_characters="\r\n\0", codec="utf-8"), min_size=1),
        )
    )
)
def test_what_is_encoded_is_what_is_parsed(events: list[ServerSentEvent]) -> None:
    assert parse([encode_event(event.data, event=event.event) for event in events]) == events


def test_an_event_leaves_with_the_read_that_ends_it() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\r\n\r") == [ServerSentEvent("a")]
    assert parser.feed(b"\ndata: b\n\n") == [ServerSentEvent("b")]


def test_comments_reach_the_callback() -> None:
    comments: list[str] = []
    parser = SSEParser(on_comment=comments.append)
    assert parser.feed(KEEP_ALIVE + b":x\n") == []
    assert comments == [" keep-alive", "x"]


@pytest.mark.parametrize("split", [False, True])
def test_invalid_utf8_is_an_error_after_the_good_events(split: bool) -> None:
    stream = b"data: good\n\ndata: \xff\n\ndata: more\n\n"
    parser = SSEParser()
    events: list[ServerSentEvent] = []
    pieces = [stream[i : i + 1] for i in range(len(stream))] if split else [stream, b""]
    with pytest.raises(SSEDecodeError, match="not UTF-8"):
        events.extend(event for piece in pieces for event in parser.feed(piece))
    assert events == [ServerSentEvent("good")]
    with pytest.raises(SSEDecodeError):
        parser.feed(b"data: more\n\n")
    with pytest.raises(SSEDecodeError):
        parser.close()


def test_an_event_past_the_limit_is_refused_while_it_arrives() -> None:
    parser = SSEParser(max_event_bytes=100)
    with pytest.raises(EventTooLargeError, match="max_event_bytes=100"):
        [parser.feed(b"data: 789\n") for _ in range(20)]
    parser = SSEParser(max_event_bytes=100)
    with pytest.raises(SSEError):
        [parser.feed(b"x") for _ in range(200)]


def test_comments_and_finished_events_do_not_count_towards_the_limit() -> None:
    parser = SSEParser(max_event_bytes=40)
    for _ in range(50):
        assert parser.feed(KEEP_ALIVE.strip() + b"\n") == []
        assert parser.feed(b"data: " + b"x" * 20 + b"\n\n") == [ServerSentEvent("x" * 20)]


def test_a_field_that_would_smuggle_an_event_is_refused() -> None:
    for bad in ("a\nb", "a\rb", "a\0b"):
        with pytest.raises(ValueError, match="line break"):
            encode_event("x", id=bad)
        with pytest.raises(ValueError, match="line break"):
            encode_event("x", event=bad)


def test_encoded_bytes_are_the_ones_the_contract_names() -> None:
    assert encode_event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert encode_event("[DONE]") == DONE
    assert encode_event("a\r\nb\rc", event="error", id="1") == b"event: error\nid: 1\ndata: a\ndata: b\ndata: c\n\n"
