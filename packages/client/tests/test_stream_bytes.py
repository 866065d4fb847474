"""Streams of each dialect, as recorded shapes: split at every byte, cut at every byte, spoiled at random.

The flow of a stream is driven without a socket, so that thousands of streams take a second; a sample of the same bytes
goes over a real one. FUZZ_SSE_EXAMPLES asks for more spoiled streams: `nox -s fuzz_sse`.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_client import errors
from deepseek_client.core import Core
from deepseek_client.effects import Close, Open, Opened, Read
from deepseek_client.endpoints import open_response
from deepseek_client.exchange import Exchange
from deepseek_client.settings import read_settings
from deepseek_client.stream_core import StreamCore

NUM_EXAMPLES = int(os.environ.get("FUZZ_SSE_EXAMPLES", "100"))
STREAMS = Path(__file__).parent / "streams"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
CORE = Core(Exchange(read_settings(base_url="http://h", max_retries=0)))


def open_events() -> StreamCore[Any, Any]:
    return CORE.open_events(MESSAGES, {}, keep_alives=False)


@dataclass(frozen=True)
class Dialect:
    """A recorded stream, how it is asked for, and the bytes with which its answer is known to be whole."""

    name: str
    open: Callable[[], StreamCore[Any, Any]]
    call: Callable[[Any], Any]
    last: bytes

    @property
    def body(self) -> bytes:
        return (STREAMS / f"{self.name}.sse").read_bytes()

    @property
    def whole_from(self) -> int:
        """The length from which on a cut loses nothing of the answer: the event with its end is complete."""
        return self.body.index(b"\n\n", self.body.index(self.last)) + 2


def chat(client: Any) -> Any:
    return client.chat.completions.stream(messages=MESSAGES)


DIALECTS = [
    Dialect(
        "gateway_generate",
        lambda: CORE.open_text("Hi", 5, {}),
        lambda client: client.generate_stream("Hi"),
        b'"finish_reason":"stop"',
    ),
    Dialect("deepseek_chat", open_events, chat, b'"finish_reason":"tool_calls"'),
    Dialect("vllm_chat", open_events, chat, b'"finish_reason":"tool_calls"'),
    Dialect("sglang_chat", open_events, chat, b'"finish_reason":"stop"'),
    Dialect(
        "deepseek_responses",
        lambda: open_response(CORE, "Hi", {}),
        lambda client: client.responses.create(input="Hi", stream=True),
        b"event: response.completed",
    ),
]
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


def drive(stream: StreamCore[Any, Any], pieces: Iterable[bytes]) -> tuple[list[Any], errors.DeepSeekError | None]:
    """Read a stream from these pieces to its end: its items, and what it failed with."""
    pieces, items = iter([piece for piece in pieces if piece]), []
    try:
        while not stream.is_over:
            flow = stream.fill()
            effect = next(flow)
            try:
                while True:
                    match effect:
                        case Open():
                            effect = flow.send(Opened(200, {"content-type": "text/event-stream"}, "body"))
                        case Read():
                            effect = flow.send(next(pieces, b""))
                        case Close():
                            effect = flow.send(None)
                        case _:
                            raise AssertionError(effect)
            except StopIteration:
                items += stream.items
                stream.items.clear()
    except errors.DeepSeekError as error:
        return items, error
    return items, None


def brief(items: list[Any]) -> list[Any]:
    """The items without the chunks that they come from, which take long to compare."""
    return [
        item if isinstance(item, str) else (type(item).__name__, texts_of([item]), getattr(item, "reason", None))
        for item in items
    ]


def texts_of(items: list[Any]) -> str:
    """What was said, thought and called, from the items themselves."""
    return "".join(
        item if isinstance(item, str) else str(getattr(item, "delta", None) or getattr(item, "arguments", None) or "")
        for item in items
        if isinstance(item, str) or not type(item).__name__.endswith("Done")
    )


@each_dialect
def test_the_recorded_answer_is_read_whole(dialect):
    stream = dialect.open()
    items, error = drive(stream, [dialect.body])
    assert error is None
    answer = stream.reading.answer()
    said = {
        "gateway_generate": lambda: (answer.text, answer.usage.total_tokens),
        "deepseek_chat": lambda: (
            answer.choices[0].message.reasoning_content,
            answer.choices[0].message.content,
            [(call.id, call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls],
            answer.usage.prompt_cache_hit_tokens,
        ),
        "vllm_chat": lambda: (
            answer.choices[0].message.reasoning_content,
            answer.choices[0].message.content,
            [call.function.arguments for call in answer.choices[0].message.tool_calls],
            answer.usage.total_tokens,
        ),
        "sglang_chat": lambda: (
            answer.choices[0].message.reasoning_content,
            answer.choices[0].message.content,
            answer.usage.total_tokens,
        ),
        "deepseek_responses": lambda: (answer.output_text, answer.status, answer.usage.total_tokens),
    }
    assert (
        said[dialect.name]()
        == {
            "gateway_generate": ("Héllo, 世界", 7),
            "deepseek_chat": (
                "查价格。",
                "Let me see.",
                [("call_0", "price", '{"of": "300750"}')],
                16,
            ),
            "vllm_chat": ("Two and two.", "It is 4 🙂", ['{"a": 2}'], 12),
            "sglang_chat": ("Hmm, so.", "Ja, schön.", 12),
            "deepseek_responses": ("Guten Tag", "completed", 6),
        }[dialect.name]
    )
    assert items


LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


@each_dialect
@pytest.mark.parametrize("ends", LINE_ENDS)
def test_every_split_gives_the_same_events(dialect, ends):
    """Each stream in two pieces, at each byte; with the byte order mark, line ends and blanks that servers send."""
    body = b"\xef\xbb\xbf" + dialect.body.replace(b"\n", LINE_ENDS[ends]) + b": bye" + LINE_ENDS[ends] * 2
    expected_stream = dialect.open()
    expected = drive(expected_stream, [dialect.body])
    step = 1 if ends == "lf" else 13
    for cut in range(0, len(body) + 1, step):
        stream = dialect.open()
        items, error = drive(stream, [body[:cut], body[cut:]])
        assert (brief(items), error) == (brief(expected[0]), None), cut
        assert stream.reading.is_complete
    for size in (1, 2, 3, 5):
        stream = dialect.open()
        assert drive(stream, [body[start : start + size] for start in range(0, len(body), size)]) == expected, size
        assert stream.reading.answer() == expected_stream.reading.answer()


@each_dialect
def test_mixed_line_ends_and_data_over_many_lines_give_the_same_events(dialect):
    expected = drive(dialect.open(), [dialect.body])
    events = [event for event in dialect.body.split(b"\n\n") if event]
    mixed = b"".join(
        event.replace(b"\n", end) + end + other
        for event, end, other in zip(events, [b"\r\n", b"\n", b"\r"] * 9, [b"\n", b"\r", b"\r\n"] * 9, strict=False)
    )
    assert drive(dialect.open(), [bytes([byte]) for byte in mixed]) == expected
    # JSON may be broken between any two tokens: a server that prints it in lines sends a data line for each.
    lines = dialect.body.replace(b',"', b',\ndata: "')
    assert drive(dialect.open(), [lines]) == expected


@each_dialect
def test_a_cut_at_every_byte_is_an_error_with_what_had_arrived(dialect):
    """Never a success, unless the event that says how the answer ended had come."""
    body = dialect.body
    whole_items, _ = drive(dialect.open(), [body])
    whole_text = texts_of(whole_items)
    lengths = set()
    for cut in range(len(body)):
        stream = dialect.open()
        items, error = drive(stream, [body[:cut]])
        if cut >= dialect.whole_from:
            assert error is None, cut
            assert texts_of(items) == whole_text
            continue
        assert type(error) is (errors.StreamTruncatedError if cut else errors.EmptyResponseError), cut
        assert whole_text.startswith(texts_of(items))
        assert brief(items) == brief(whole_items[: len(items)])
        lengths.add(len(items))
        if isinstance(error, errors.StreamTruncatedError) and items:
            assert error.snapshot == stream.reading.answer()
            assert whole_text.startswith(error.partial_text) or dialect.name.endswith("chat")
    assert len(lengths) >= 4


@each_dialect
async def test_the_same_bytes_over_a_socket_one_by_one_and_cut(server, connect, kit, dialect):
    expected, _ = drive(dialect.open(), [dialect.body])

    def handler(connection, body, size, is_clean):
        connection.head()
        for start in range(0, len(body), size):
            connection.chunk(body[start : start + size])
        if is_clean:
            connection.end()
        return is_clean

    client = connect(profile="gateway", max_retries=0)
    server.script(lambda connection: handler(connection, dialect.body, 3, True))
    async with kit.entered(await kit.settle(dialect.call(client))) as stream:
        assert await kit.collect(stream) == expected
    ends = [position for position in range(dialect.whole_from - 2) if dialect.body.startswith(b"\n\n", position)]
    for cut in {position + offset for position in ends for offset in (0, 1, 2, 9)}:
        if cut >= dialect.whole_from - 1:
            continue
        for is_clean in (True, False):
            server.script(
                lambda connection, cut=cut, is_clean=is_clean: handler(connection, dialect.body[:cut], 4096, is_clean)
            )
            seen = []
            with pytest.raises(errors.StreamTruncatedError):
                async with kit.entered(await kit.settle(dialect.call(client))) as stream:
                    await kit.collect_into(seen, stream)
            assert seen == expected[: len(seen)]


def test_an_event_of_many_megabytes_is_read_and_one_past_the_limit_is_refused():
    text = "x" * (4 * 1024 * 1024)
    event = b'data: {"id":"g","text":"%b","finish_reason":"stop"}\n\n'
    body = event % text.encode()
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    assert drive(CORE.open_text("Hi", 5, {}), pieces) == ([text], None)
    items, error = drive(CORE.open_text("Hi", 5, {}), [b"data: ", *[b"x" * 65536] * 300])
    assert (items, type(error)) == ([], errors.StreamProtocolError)
    assert "max_event_bytes" in str(error)


NOISE = [
    b"\n\n", b"\n", b"\r", b": keep-alive\n\n", b"data: [DONE]\n\n", b"data:\n\n", b"data: {}\n\n", b"data: null\n\n",
    b"data: []\n\n", b'data: "x"\n\n', b"event: error\n", b"data: ", b"id: 3\n", b"retry: 9\n\n", b"\xff", b"\0", b"{",
    b'data: {"error": {"message": "m", "code": 429}}\n\n', b'data: {"object": "error", "message": "m"}\n\n', b'"', b"[",
    b"[" * 3000, b"<html>", b"9" * 5000, b"\\ud800", b"null", b"-1", b"1e999", b"true",
]  # fmt: skip


@settings(max_examples=NUM_EXAMPLES)
@given(data=st.data(), dialect=st.sampled_from(DIALECTS))
def test_a_spoiled_stream_ends_well_or_in_an_error_of_ours(data: st.DataObject, dialect: Dialect) -> None:
    """Bytes taken out, put in, doubled or changed: no exception but DeepSeekError, and no success without an end."""
    body = bytearray(dialect.body)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        stop = min(len(body), start + data.draw(st.sampled_from([0, 0, 1, 2, 40])))
        body[start:stop] = data.draw(
            st.one_of(st.sampled_from(NOISE), st.binary(max_size=3), st.just(body[start:stop] * 2))
        )
    spoiled = bytes(body)
    cut = data.draw(st.integers(0, len(spoiled)))
    stream = dialect.open()
    _, error = drive(stream, [spoiled[:cut], spoiled[cut:]])
    whole = dialect.open()
    _, whole_error = drive(whole, [spoiled])
    assert type(error) is type(whole_error)
    assert str(error) == str(whole_error)
    if error is None:
        assert stream.reading.answer() == whole.reading.answer()
        assert b"[DONE]" in spoiled or stream.reading.is_complete
