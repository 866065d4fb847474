"""The word filter on a relay's events: what callers see of an answer, whatever the engine's cuts."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.guard.entries import Entry, Level, Match, Rule
from deepseek_gateway.guard.hits import Hit
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.stage import WordStage
from deepseek_gateway.relay.stages import EndAnswer, StageChain, split_events

HEAD = {"id": "x", "created": 1, "model": "m"}


def rules_of(**levels: str) -> Matcher:
    entries = [Entry(pattern.replace("_", " "), Level(level)) for pattern, level in levels.items()]
    return Matcher([Rule(f"list@1#{number}", entry, entry.level) for number, entry in enumerate(entries)])


WORDS = rules_of(bomb="block", damn="mask", plan="review", bombay="allow")


def chat(index: int = 0, finish: str | None = None, more: dict[str, Any] | None = None, **delta: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": finish, **(more or {})}]}


def text_event(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def generation(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {**HEAD, "text": text, "finish_reason": finish, **more}


def frame(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def run(matcher: Matcher, events: list[dict[str, Any]], told: list[Any] | None = None) -> list[dict[str, Any]]:
    """The JSON of all events that go out, those that end the answer too."""

    def note(hit: Hit, choice: int, field: str) -> None:
        if told is not None:
            told.append((hit.rule.entry.pattern, choice, field, hit.start))

    chain = StageChain([WordStage(matcher, note)])
    out = b"".join(chain.pass_on([frame(event)]) for event in events)
    if chain.ended is None:
        out += chain.pass_on([b"data: [DONE]\n\n"])
    if chain.ended is not None:
        out += chain.ended.last
    data = [event[6:-2] for event in split_events(out)]
    return [json.loads(item) for item in data if item != b"[DONE]"]


def said(events: list[dict[str, Any]], field: str = "content", index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(field) or "" for choice in choices)


def finish_of(events: list[dict[str, Any]], index: int = 0) -> list[str]:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]


def test_clean_events_pass_as_the_bytes_that_came() -> None:
    stage = WordStage(WORDS, lambda *_: None)
    odd = b'data: {"id" : "x","choices":[{"index":0,"delta":{"content":"hello \\u00e9"},"finish_reason":null}]}\n\n'
    for event in (odd, b": keep-alive\n\n", b"event: other\ndata: {}\n\n", b"data: [DONE]\n\n"):
        assert stage.pass_on(event) is event


def test_a_held_end_goes_out_with_the_next_event_or_before_the_finish() -> None:
    events = run(WORDS, [chat(content="a bo"), chat(content="at, a da"), chat(finish="stop")])
    assert [said([event]) for event in events] == ["a ", "boat, a ", "da", ""]
    assert finish_of(events) == ["stop"]


def test_an_event_that_loses_all_its_text_is_not_sent() -> None:
    assert [said([event]) for event in run(WORDS, [chat(content="bo"), chat(content="x")])] == ["box"]


def test_blocked_words_end_the_answer_after_its_safe_part() -> None:
    events = run(WORDS, [chat(role="assistant", content=""), chat(content="build a b"), chat(content="omb now")])
    assert said(events) == "build a "
    assert finish_of(events) == ["content_filter"]
    assert [said([event]) for event in events] == ["", "build a ", ""]


def test_masked_words_are_replaced_wherever_they_were_cut() -> None:
    assert said(run(WORDS, [chat(content=piece) for piece in ("da", "m", "n it, Da", "mn")])) == "**** it, ****"


def test_choices_are_texts_of_their_own() -> None:
    events = run(WORDS, [chat(0, content="bo"), chat(1, content="mb"), chat(0, content="x"), chat(1, content="da")])
    assert (said(events), said(events, index=1)) == ("box", "mbda")


def test_a_block_in_one_choice_ends_all() -> None:
    events = run(WORDS, [chat(0, content="da"), chat(1, content="a bomb")])
    assert (said(events), said(events, index=1)) == ("da", "a ")
    assert (finish_of(events), finish_of(events, 1)) == (["content_filter"], ["content_filter"])


def test_reasoning_goes_out_before_the_content_that_follows_it() -> None:
    events = run(WORDS, [chat(reasoning_content="a bo"), chat(content="yes"), chat(finish="stop")])
    order = [name for event in events for name in event["choices"][0]["delta"]]
    assert order == ["reasoning_content", "reasoning_content", "content"]
    assert said(events, "reasoning_content") == "a bo"


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "refusal", "some_new_field"])
def test_every_text_of_a_delta_is_filtered(field: str) -> None:
    assert said(run(WORDS, [chat(**{field: "damn"}), chat(**{field: " bomb"})]), field) == "**** "


def call(arguments: str | None = None, name: str | None = None, index: int = 0) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"index": index, "function": function}]}


def test_tool_calls_are_filtered_behind_their_escapes_and_by_name() -> None:
    deltas = [call("", "find_damn"), call('{"q": "d\\u006'), call('1mn", "b": "bo'), call('at"}'), call("x", "b", 1)]
    events = run(WORDS, [chat(**delta) for delta in deltas])
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    first = [item["function"] for item in calls if item["index"] == 0]
    assert "".join(function.get("name", "") for function in first) == "find_****"
    assert "".join(function.get("arguments", "") for function in first) == '{"q": "****", "b": "boat"}'


def test_generate_and_completions_are_filtered_too() -> None:
    events = run(WORDS, [generation("a da"), generation("mn b"), generation("", "stop")])
    assert "".join(event["text"] for event in events) == "a **** b"
    assert events[-1]["finish_reason"] == "stop"
    blocked = run(WORDS, [generation("a bo"), generation("mb")])
    assert [(event["text"], event["finish_reason"]) for event in blocked] == [("a ", None), ("", "content_filter")]
    events = run(WORDS, [text_event("a da"), text_event("mn b"), text_event("", "stop")])
    assert "".join(event["choices"][0]["text"] for event in events) == "a **** b"


def test_logprobs_and_token_ids_wait_with_their_text_and_go_where_it_is_masked() -> None:
    def event(text: str, number: int) -> dict[str, Any]:
        logprobs = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": []}]}
        return chat(content=text, more={"logprobs": logprobs, "token_ids": [number]})

    events = run(WORDS, [event("a ", 1), event("bo", 2), event("x ", 3), event("da", 4), event("mn", 5), event("!", 6)])
    choices = [item["choices"][0] for item in events]
    assert [choice["delta"]["content"] for choice in choices] == ["a ", "box ", "****!"]
    assert [choice["token_ids"] for choice in choices] == [[1], [2, 3], [6]]
    tokens = [[token["token"] for token in choice["logprobs"]["content"]] for choice in choices]
    assert tokens == [["a "], ["bo", "x "], ["!"]]


def test_alternatives_that_spell_blocked_words_are_not_shown() -> None:
    top = [{"token": " bomb", "logprob": -1.0}]
    logprobs = {"content": [{"token": "cake", "logprob": -0.1, "top_logprobs": top}]}
    (event,) = run(WORDS, [chat(content="cake", more={"logprobs": logprobs})])
    assert event["choices"][0]["logprobs"] is None
    assert said([event]) == "cake"


def test_review_and_allow_change_nothing_and_hits_are_told_once() -> None:
    told: list[Any] = []
    out = [said([event]) for event in run(WORDS, [chat(content="the pl"), chat(content="an for Bombay.")], told)]
    assert out == ["the pl", "an for Bombay."]
    assert told == [("plan", 0, "content", 4)]


def test_an_error_event_comes_after_what_was_held_back() -> None:
    stage = WordStage(WORDS, lambda *_: None)
    stage.pass_on(frame(chat(content="a bo")))
    out = stage.pass_on(b"event: error\ndata: {}\n\n")
    assert b'"bo"' in out
    assert out.endswith(b"event: error\ndata: {}\n\n")


def test_half_a_surrogate_pair_passes_as_it_is() -> None:
    stage = WordStage(WORDS, lambda *_: None)
    raw = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":null}]}\n\n'
    assert stage.pass_on(raw) is raw
    stage.pass_on(frame(chat(content="b")))
    assert b"\\ud83d" in stage.pass_on(raw)


def test_an_event_that_cannot_be_read_ends_the_answer_unless_the_policy_says_open() -> None:
    with pytest.raises(EndAnswer) as end:
        WordStage(WORDS, lambda *_: None).pass_on(b"data: {broken\n\n")
    assert b"content_filter" in end.value.last
    stage = WordStage(WORDS, lambda *_: None, fails_open=True)
    assert stage.pass_on(b"data: {broken\n\n") == b"data: {broken\n\n"


def body_of(matcher: Matcher, answer: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(WordStage(matcher, lambda *_: None).body(orjson.dumps(answer)))
    except EndAnswer as end:
        return json.loads(end.last)


def test_answers_in_one_piece_are_filtered_like_streams() -> None:
    def whole(content: str, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": "stop"}
        return {**HEAD, "choices": [{**choice, "logprobs": {"content": []}}]}

    clean = orjson.dumps(whole("hello"))
    assert WordStage(WORDS, lambda *_: None).body(clean) is clean
    masked = body_of(WORDS, whole("damn", reasoning_content="damn"))["choices"][0]
    assert masked["message"] == {"role": "assistant", "content": "****", "reasoning_content": "****"}
    assert masked["logprobs"] is None
    blocked = body_of(WORDS, whole("more", reasoning_content="a bomb", tool_calls=[{"function": {"name": "f"}}]))
    assert blocked["choices"][0]["message"] == {"role": "assistant", "content": "", "reasoning_content": "a "}
    assert blocked["choices"][0]["finish_reason"] == "content_filter"
    assert body_of(WORDS, generation("a bomb", "stop"))["text"] == "a "
    assert body_of(WORDS, text_event("x damn", "stop"))["choices"][0]["text"] == "x ****"


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)])]


MAKERS: list[Callable[[str], dict[str, Any]]] = [
    lambda text: chat(content=text),
    lambda text: text_event(text),
    lambda text: generation(text),
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["bom", "b", "bombay", "da", "mn", "plan", " ", "é", "😀", "ay"]), max_size=8),
    st.lists(st.integers(0, 24), max_size=6),
    st.sampled_from(MAKERS),
)
def test_any_split_into_events_gives_the_answer_in_one_piece(
    words: list[str], cuts: list[int], make: Callable[[str], dict[str, Any]]
) -> None:
    def text_in(events: list[dict[str, Any]]) -> tuple[str, list[str]]:
        parts = [event["choices"][0] if "choices" in event else event for event in events]
        texts = [part["delta"].get("content") or "" if "delta" in part else part["text"] for part in parts]
        return "".join(texts), [part["finish_reason"] for part in parts if part["finish_reason"]]

    text = "".join(words)
    end = make("")
    (end["choices"][0] if "choices" in end else end)["finish_reason"] = "stop"
    whole = run(WORDS, [make(text), end])
    assert text_in(run(WORDS, [*map(make, pieces_of(text, cuts)), end])) == text_in(whole)


def test_whole_words_wait_for_the_next_letter_only() -> None:
    matcher = Matcher([Rule("l@1#0", Entry("ass", Level.MASK, match=Match.WORD), Level.MASK)])
    events = run(matcher, [chat(content=piece) for piece in ("an ass", "et and an ass", ".")])
    assert [said([event]) for event in events] == ["an ", "asset and an ", "***."]
