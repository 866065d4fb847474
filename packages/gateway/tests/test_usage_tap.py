"""Usage read from and cut out of stream bytes."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.errors import UpstreamCutError
from deepseek_gateway.ledger.records import TokenCounts
from deepseek_gateway.relay.frames import FrameSplitter
from deepseek_gateway.relay.request import Dialect, parse_request, size_of_prompt
from deepseek_gateway.relay.usage_tap import UsageTap, UsageWish, split_usage, usage_of_body

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "prompt_cache_hit_tokens": 2}


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@given(st.text(), st.text())
def test_usage_at_the_end_is_cut_from_the_bytes_whatever_the_text_says(before: str, text: str) -> None:
    chunk = {"id": before, "choices": [{"delta": {"content": text + ',"usage":{"x":1}}'}, "finish_reason": None}]}
    without, usage = split_usage(compact({**chunk, "usage": USAGE}))
    assert without == compact(chunk)
    assert usage == USAGE


@given(st.permutations(["id", "choices", "usage", "object"]))
def test_usage_anywhere_else_is_cut_too(order: list[str]) -> None:
    chunk = {"id": "x", "choices": [{"text": "é\n", "usage": {"not": "this"}}], "usage": USAGE, "object": "y"}
    ordered = {name: chunk[name] for name in order}
    without, usage = split_usage(compact(ordered))
    assert usage == USAGE
    assert json.loads(without) == {name: chunk[name] for name in order if name != "usage"}


@pytest.mark.parametrize(
    "data",
    [
        b'{"id":"x"}',
        b'{"text":"\\"usage\\":{}"}',
        b'{"choices":[{"usage":{"prompt_tokens":9}}]}',
        b'{"a":{"b":1,"usage":{"prompt_tokens":9}}}',
        b'not json ,"usage":{}}',
    ],
)
def test_what_is_not_the_chunks_usage_stays_untouched(data: bytes) -> None:
    without, usage = split_usage(data)
    assert without == data
    assert usage is None


def test_null_usage_is_cut() -> None:
    assert split_usage(b'{"id":"x","usage":null}') == (b'{"id":"x"}', None)


def test_absurd_counts_count_as_nothing() -> None:
    body = compact({"choices": [], "usage": {"prompt_tokens": -5, "completion_tokens": 2**60, "total_tokens": "x"}})
    assert usage_of_body(body) == (TokenCounts(), None)


STREAM = (
    b"".join(
        b"data: " + compact({"choices": [{"delta": {"content": word}}], "usage": USAGE}) + b"\n\n"
        for word in ("a", "日", "é")
    )
    + b": keep-alive\n\ndata: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted), st.booleans())
def test_a_stream_split_anywhere_gives_the_same_bytes(cuts: list[int], crlf: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    bounds = [0, *cuts, len(stream)]
    splitter, tap = FrameSplitter(10_000), UsageTap(UsageWish())
    out = b""
    for start, end in itertools.pairwise(bounds):
        out += b"".join(tap.pass_on(frame) for frame in splitter.feed(stream[start:end]))
    rest = b"".join(tap.pass_on(frame) for frame in splitter.feed(b""))
    assert (out + rest).count(b"usage") == 0
    assert (out + rest).startswith(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
    assert (out + rest).endswith(b": keep-alive\n\ndata: [DONE]\n\n")
    assert tap.is_done
    assert tap.counts == TokenCounts(3, 5, 2)


def test_an_event_without_an_end_is_bounded() -> None:
    splitter = FrameSplitter(1000)
    for _ in range(10):
        splitter.feed(b"x" * 100)
    with pytest.raises(UpstreamCutError, match="1000"):
        splitter.feed(b"x")


@settings(max_examples=25)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_the_estimate_takes_any_json(value: object) -> None:
    size = size_of_prompt(value)
    assert 1 <= size.estimate <= size.most


def test_the_estimate_is_above_real_counts_of_plain_text_and_not_far() -> None:
    english = "The quick brown fox jumps over the lazy dog. " * 20  # about 200 tokens
    assert 200 <= size_of_prompt(english).estimate <= 400
    assert size_of_prompt([1, 2, 3, 4]) == (5, 5)


def test_a_number_may_be_as_many_tokens_as_it_has_digits() -> None:
    assert size_of_prompt("31415926535" * 100).estimate >= 1100


def test_several_answers_hold_several_times_the_tokens() -> None:
    body = b'{"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 10}'
    assert parse_request(Dialect.COMPLETIONS, body).choices == 6
    assert parse_request(Dialect.COMPLETIONS, b'{"prompt": [1, 2, 3], "n": 10000000}').choices == 128
    assert parse_request(Dialect.GENERATE, b'{"prompt": "a", "n": -3, "max_tokens": -1}').max_tokens is None


def test_what_is_filled_in_before_counts_like_the_prompt() -> None:
    prompt, both = ({"prompt": "a" * 400}, {"prompt": "a" * 400, "suffix": "b" * 4000})
    small, large = (parse_request(Dialect.COMPLETIONS, json.dumps(each).encode()) for each in (prompt, both))
    assert large.prompt.estimate > small.prompt.estimate + 500
