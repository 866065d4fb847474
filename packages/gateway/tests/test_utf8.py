"""However an engine's bytes are split, also within characters, callers get whole events of whole characters."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.dialects.messages import MessagesStage
from deepseek_gateway.dialects.responses import ResponsesStage
from deepseek_gateway.relay.frames import FrameSplitter
from deepseek_gateway.relay.stages import StageChain
from deepseek_gateway.relay.usage_tap import UsageTap, UsageWish

TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6)


def stream_of(texts: list[str]) -> bytes:
    events: list[bytes] = []
    for at, text in enumerate(texts):
        delta = {"reasoning_content" if at % 3 == 0 else "content": text}
        events.append(_event({"index": 0, "delta": delta, "finish_reason": None}, len(events)))
    events.append(_event({"index": 0, "delta": {}, "finish_reason": "stop"}, len(events)))
    return b"".join(events) + b"data: [DONE]\n\n"


def _event(choice: dict, used: int) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": used}
    chunk = {"id": "x", "model": "m", "choices": [choice], "usage": usage}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def parts_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


def relay(parts: list[bytes], dialect: str) -> str:
    """What a caller gets; fails if any piece of it is not whole."""
    splitter = FrameSplitter(2**20)
    tap = UsageTap(UsageWish(trailing=True, continuous=dialect != "chat"))
    stages = {"chat": (), "messages": (MessagesStage(),), "responses": (ResponsesStage({}),)}[dialect]
    chain = StageChain(stages)
    out = ""
    for part in parts:
        piece = chain.pass_on([tap.pass_on(frame) for frame in splitter.feed(part)])
        assert not piece or piece.endswith(b"\n\n")
        out += piece.decode()  # strict: a broken character raises
    assert tap.is_done
    return out


def text_in(out: str, dialect: str) -> str:
    data = [line.removeprefix("data: ") for line in out.split("\n") if line.startswith("data: {")]
    events = [json.loads(item) for item in data]
    if dialect == "messages":
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        return "".join(delta.get("text", "") + delta.get("thinking", "") for delta in deltas)
    if dialect == "responses":
        return "".join(event["delta"] for event in events if event["type"].endswith("text.delta"))
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("content", "") + delta.get("reasoning_content", "") for delta in deltas)


@given(TEXTS, st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from(["chat", "messages", "responses"]))
def test_any_split_gives_the_same_whole_characters(texts: list[str], cuts: list[int], dialect: str) -> None:
    data = stream_of(texts)
    assert text_in(relay(parts_of(data, cuts), dialect), dialect) == "".join(texts)


def test_a_split_after_every_byte_too() -> None:
    texts = ["日本", "é👩‍👩‍👧", "\u2028 plain"]
    for dialect in ("chat", "messages", "responses"):
        data = stream_of(texts)
        assert text_in(relay([data[at : at + 1] for at in range(len(data))], dialect), dialect) == "".join(texts)


@given(st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=10))
def test_bytes_that_are_no_utf8_are_replaced_not_passed_on(junk: bytes, cuts: list[int]) -> None:
    data = b": " + junk.replace(b"\n", b"").replace(b"\r", b"") + b"\n\n" + stream_of(["x"])
    for dialect in ("chat", "messages", "responses"):
        assert text_in(relay(parts_of(data, cuts), dialect), dialect) == "x"


def test_half_a_character_in_an_escape_becomes_a_question_mark() -> None:
    frame = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a\\ud83db"},"finish_reason":null}]}\n\n'
    assert b'"a?b"' in MessagesStage().pass_on(frame)
    assert b'"a?b"' in ResponsesStage({}).pass_on(frame)
