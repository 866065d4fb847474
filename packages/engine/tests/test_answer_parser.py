"""Answers as models of each family write them, cut in every way: what is read never depends on the cuts."""

import json
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_engine.text_parsers.events import (
    ContentText,
    Event,
    ParsedAnswer,
    ToolArguments,
    ToolCall,
    ToolCallDropped,
    ToolCallStart,
    join_events,
)
from deepseek_engine.text_parsers.markup import FORMATS
from deepseek_engine.text_parsers.parser import AnswerParser, ParserSpec, ReasoningStart

TOOLS = frozenset({"get_weather", "now"})

V3_OPEN, V3_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


@dataclass(frozen=True)
class Fixture:
    name: str
    format: str
    text: str
    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""
    start: ReasoningStart = "possible"

    @property
    def expected(self) -> ParsedAnswer:
        return ParsedAnswer(self.content, self.reasoning, tuple(ToolCall(*call) for call in self.calls))


def v3_call(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def v31_call(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def dsml(block: str, *calls: str) -> str:
    return f"\n\n<｜DSML｜{block}>\n" + "\n".join(calls) + f"\n</｜DSML｜{block}>"


def dsml_call(name: str, *parameters: tuple[str, str, str]) -> str:
    lines = [
        f'<｜DSML｜parameter name="{key}" string="{is_string}">{value}</｜DSML｜parameter>'
        for key, is_string, value in parameters
    ]
    return "\n".join([f'<｜DSML｜invoke name="{name}">', *lines, "</｜DSML｜invoke>"])


def hermes_call(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


PARIS = '{"city": "Paris {} \\"x\\" ]"}'
NESTED = '{"a": [1, {"b": null}], "c": {"d": "}"}}'
BOTH = (("get_weather", PARIS), ("now", NESTED))

WELL_FORMED = [
    Fixture("plain text", "deepseek-v3", "Hello <there>, 世界! <｜tool", "Hello <there>, 世界! <｜tool"),
    Fixture(
        "v3",
        "deepseek-v3",
        f"Let me see.\n{V3_OPEN}{v3_call('get_weather', PARIS)}\n{v3_call('now', NESTED)}{V3_CLOSE}",
        "Let me see.",
        BOTH,
    ),
    Fixture(
        "r1, its own opening tag",
        "deepseek-r1",
        f"<think>\nI need </it\n\n</think>\n\nDone.{V3_OPEN}{v3_call('now', '{}')}{V3_CLOSE}\n",
        "Done.",
        (("now", "{}"),),
        "I need </it",
    ),
    Fixture("r1, opened by the prompt", "deepseek-r1", "Hm.\n</think>\n\n4", "4", (), "Hm.", "open"),
    Fixture("r1 that never stops thinking", "deepseek-r1", "<think>Hm </thin", "", (), "Hm </thin"),
    Fixture(
        "a tag that comes too late", "deepseek-r1", "The tag <think> means</think>", "The tag <think> means</think>"
    ),
    Fixture(
        "v3.1",
        "deepseek-v3.1",
        f"Hm</think>{V3_OPEN}{v31_call('get_weather', PARIS)}{v31_call('now', NESTED)}{V3_CLOSE}",
        "",
        BOTH,
        "Hm",
        "open",
    ),
    Fixture("v3.1 that does not think", "deepseek-v3.1", "\n<think> is a tag", "\n<think> is a tag", start="closed"),
    Fixture(
        "v3.2",
        "deepseek-v3.2",
        "Hm</think>Two:"
        + dsml(
            "function_calls",
            dsml_call(
                "get_weather", ("city", "true", 'a "b"\n<c> \\ '), ("days", "false", "[1, 2]"), ("ü", "false", "true")
            ),
            dsml_call("now"),
        ),
        "Two:",
        (("get_weather", '{"city": "a \\"b\\"\\n<c> \\\\ ", "days": [1, 2], "ü": true}'), ("now", "{}")),
        "Hm",
        "open",
    ),
    Fixture(
        "v4",
        "deepseek-v4",
        dsml("tool_calls", dsml_call("now", ("zone", "true", ""))),
        "",
        (("now", '{"zone": ""}'),),
        start="closed",
    ),
    Fixture("v3, one call", "deepseek-v3", f"{V3_OPEN}{v3_call('now', '{}')}{V3_CLOSE}", calls=(("now", "{}"),)),
    Fixture(
        "v3.1, one call",
        "deepseek-v3.1",
        f"H</think>{V3_OPEN}{v31_call('now', '{}')}{V3_CLOSE}",
        "",
        (("now", "{}"),),
        "H",
        "open",
    ),
    Fixture(
        "v3.2 that might have thought",
        "deepseek-v3.2",
        dsml("function_calls", dsml_call("now", ("n", "false", "1"))),
        "",
        (("now", '{"n": 1}'),),
    ),
    Fixture(
        "hermes",
        "hermes",
        "Well,\n"
        + hermes_call('{"name": "get_weather", "arguments": ' + PARIS + "}")
        + "\n"
        + hermes_call('{ "name" : "now", "arguments" :' + NESTED + ', "id": {"x": 1} }')
        + "\n",
        "Well,",
        BOTH,
    ),
    Fixture(
        "hermes, other orders and forms",
        "hermes",
        hermes_call('{"arguments": {"a": 1}, "name": "now"}')
        + hermes_call('{"name": "now"}')
        + hermes_call('{"name": "now", "arguments": "{\\"a\\": 2}"}'),
        "",
        (("now", '{"a": 1}'), ("now", "{}"), ("now", '{"a": 2}')),
    ),
    Fixture(
        "qwen3",
        "qwen3",
        "<think>\nHm\n</think>\n\n" + hermes_call('{"name": "now", "arguments": {}}'),
        "",
        (("now", "{}"),),
        "Hm",
    ),
    Fixture(
        "llama 3",
        "llama3-json",
        '\n{"name": "get_weather", "parameters": ' + PARIS + '}; {"name": "now", "parameters": ' + NESTED + "}",
        "",
        BOTH,
    ),
    Fixture(
        "llama 3 with its tag", "llama3-json", '<|python_tag|>{"name": "now", "parameters": {}}', "", (("now", "{}"),)
    ),
    Fixture("llama 3, an object that is no call", "llama3-json", ' {"name": "Bob"} it is', ' {"name": "Bob"} it is'),
    Fixture(
        "llama 3.2",
        "llama3-pythonic",
        '[get_weather(city="(]\\"", days=[1, {"x": None}]), now()]',
        "",
        (("get_weather", '{"city": "(]\\"", "days": [1, {"x": null}]}'), ("now", "{}")),
    ),
    Fixture("llama 3.2, a list that is no call", "llama3-pythonic", "[1] says (so)", "[1] says (so)"),
    Fixture(
        "mistral, a list",
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": '
        + PARIS
        + '}, {"name": "now", "arguments": '
        + NESTED
        + "}]",
        "",
        BOTH,
    ),
    Fixture(
        "mistral, names",
        "mistral",
        f"Ok.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]now[ARGS]{NESTED}",
        "Ok.",
        BOTH,
    ),
]


def _as_it_is(name: str, format: str, text: str) -> Fixture:  # noqa: A002
    return Fixture(name, format, text, text, start="closed")


_INJECTION = '{"x": "' + hermes_call('{\\"name\\": \\"now\\", \\"arguments\\": {}}') + '"}'

MALFORMED = [
    _as_it_is("not declared", "deepseek-v3", f"A\n{V3_OPEN}{v3_call('rm', '{}')}{V3_CLOSE} B"),
    _as_it_is("an empty block", "deepseek-v3.1", f"{V3_OPEN}{V3_CLOSE} and text"),
    _as_it_is("never closed", "deepseek-v3.1", f"{V3_OPEN}<｜tool▁call▁begin｜>now<｜tool▁sep｜>" + '{"a": {}}'),
    _as_it_is("cut within the arguments", "hermes", 'Ok\n<tool_call>\n{"name": "now", "arguments": {"a": [1'),
    _as_it_is(
        "text about the markup", "hermes", "Write <tool_call> and then </tool_call> around <tool_call>{}</tool_call>"
    ),
    _as_it_is("broken JSON", "hermes", hermes_call('{"name": "now", "arguments": {"a": nope}}') + " so"),
    _as_it_is("not a number", "hermes", hermes_call('{"name": "now", "arguments": {"a": NaN}}')),
    _as_it_is("a key twice", "hermes", hermes_call('{"name": "now", "arguments": {}, "arguments": {"a": 1}}')),
    _as_it_is("text after the object", "hermes", hermes_call('{"name": "now", "arguments": {}} rest')),
    _as_it_is("a call within an undeclared one", "deepseek-v3", f"{V3_OPEN}{v3_call('rm', PARIS)}"),
    _as_it_is("arguments that are no object", "deepseek-v3.1", f"{V3_OPEN}{v31_call('now', '[1]')}{V3_CLOSE}"),
    _as_it_is(
        "a lone surrogate",
        "deepseek-v3.1",
        V3_OPEN + v31_call("now", '{"a": "\\ud800"}') + V3_CLOSE,
    ),
    _as_it_is("too deep", "deepseek-v3.1", V3_OPEN + v31_call("now", '{"a": ' + "[" * 70 + "]" * 70 + "}") + V3_CLOSE),
    _as_it_is("no JSON", "deepseek-v3.2", "A" + dsml("function_calls", dsml_call("now", ("n", "false", "one")))),
    _as_it_is(
        "a parameter twice", "deepseek-v4", dsml("tool_calls", dsml_call("now", ("n", "true", "1"), ("n", "true", "2")))
    ),
    _as_it_is("half a list", "mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}'),
    _as_it_is("a positional argument", "llama3-pythonic", "[now(1)]"),
]

MIXED = [
    Fixture(
        "a bad call between good ones",
        "deepseek-v3.1",
        f"{V3_OPEN}{v31_call('now', '{}')}{v31_call('rm', PARIS)}{v31_call('now', NESTED)}{V3_CLOSE}",
        v31_call("rm", PARIS),
        (("now", "{}"), ("now", NESTED)),
    ),
    Fixture(
        "a good call after a bad one",
        "hermes",
        hermes_call('{"name": "rm", "arguments": {}}') + hermes_call('{"name": "now", "arguments": {}}'),
        hermes_call('{"name": "rm", "arguments": {}}'),
        (("now", "{}"),),
    ),
    Fixture(
        "cut in the second call",
        "mistral",
        'Hi[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{"a": "b',
        'Hi[TOOL_CALLS]now[ARGS]{"a": "b',
        (("now", "{}"),),
    ),
]

ALL = [*WELL_FORMED, *MALFORMED, *MIXED]
by_name = pytest.mark.parametrize("fixture", ALL, ids=lambda fixture: fixture.name)


def parse(fixture: Fixture, pieces: list[str], *, tools: frozenset[str] = TOOLS, **limits: int) -> list[Event]:
    parser = AnswerParser(ParserSpec(FORMATS[fixture.format], fixture.start, tools, **limits))
    return [event for piece in pieces for event in parser.push(piece)] + parser.finish()


@by_name
def test_an_answer_is_read_as_its_format_says(fixture: Fixture):
    assert join_events(parse(fixture, [fixture.text])) == fixture.expected
    for call in fixture.expected.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)


@by_name
def test_every_split_point_and_single_characters_read_the_same(fixture: Fixture):
    text = fixture.text
    assert join_events(parse(fixture, list(text))) == fixture.expected
    for cut in range(len(text) + 1):
        assert join_events(parse(fixture, [text[:cut], text[cut:]])) == fixture.expected, cut


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_every_pair_of_split_points_reads_the_same_in_every_format(format_name: str):
    fixtures = [fixture for fixture in WELL_FORMED if fixture.format == format_name and fixture.calls]
    assert fixtures or FORMATS[format_name].tools is None
    for fixture in sorted(fixtures, key=lambda fixture: len(fixture.text))[:1]:
        text = fixture.text
        for first in range(len(text) + 1):
            for second in range(first, len(text) + 1):
                pieces = [text[:first], text[first:second], text[second:]]
                assert join_events(parse(fixture, pieces)) == fixture.expected, (first, second)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_random_cuts_of_random_joined_answers_read_the_same(data: st.DataObject):
    format_name = data.draw(st.sampled_from(sorted(FORMATS)))
    parts = [fixture.text for fixture in ALL if fixture.format == format_name] + ["x", "\n\n", " ", "<", "{", "}", "]"]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=4)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    start = data.draw(st.sampled_from(["open", "possible", "closed"]))
    fixture = Fixture("", format_name, text, start=start)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert join_events(parse(fixture, pieces)) == join_events(parse(fixture, [text]))


@by_name
def test_without_declared_tools_nothing_is_a_call(fixture: Fixture):
    parsed = join_events(parse(fixture, list(fixture.text), tools=frozenset()))
    assert parsed.tool_calls == ()
    if not fixture.reasoning:
        assert parsed.content == fixture.text


@pytest.mark.parametrize("fixture", WELL_FORMED, ids=lambda fixture: fixture.name)
def test_arguments_parse_only_once_the_call_is_closed(fixture: Fixture):
    """What a caller has of a call at any moment is no JSON object unless the call has ended."""
    parser = AnswerParser(ParserSpec(FORMATS[fixture.format], fixture.start, TOOLS))
    arguments: dict[int, str] = {}
    ended: set[int] = set()
    for character in fixture.text:
        for event in parser.push(character):
            if isinstance(event, ToolArguments):
                arguments[event.index] = arguments.get(event.index, "") + event.text
            elif not isinstance(event, ContentText | ToolCallStart) and hasattr(event, "index"):
                ended.add(event.index)
        for index, text in arguments.items():
            if index not in ended:
                with pytest.raises(json.JSONDecodeError):
                    json.loads(text)


def test_arguments_stream_while_the_call_is_open():
    parser = AnswerParser(ParserSpec(FORMATS["deepseek-v3.1"], "closed", TOOLS))
    assert parser.push(V3_OPEN + "<｜tool▁call▁begin｜>now<｜tool▁sep｜>") == [ToolCallStart(0, "now")]
    assert parser.push('{"a": "b') == [ToolArguments(0, '{"a": "b')]
    assert parser.push("c") == [ToolArguments(0, "c")]


def test_a_started_call_that_breaks_is_dropped_and_its_markup_is_content():
    text = hermes_call('{"name": "now", "arguments": {"a": nope}}')
    events = parse(Fixture("", "hermes", text, start="closed"), list(text))
    assert ToolCallDropped(0) in events
    assert join_events(events) == ParsedAnswer(text, "", ())


def test_text_is_held_back_only_while_it_may_be_a_tag():
    parser = AnswerParser(ParserSpec(FORMATS["hermes"], "closed", TOOLS))
    assert parser.push("a <") == [ContentText("a ")]
    assert parser.push("tool_cal") == []
    assert parser.push("endar") == [ContentText("<tool_calendar")]
    assert parser.push("\n") == []
    assert parser.push("b") == [ContentText("\nb")]


def test_the_answer_is_complete_after_the_allowed_number_of_calls():
    fixture = next(each for each in WELL_FORMED if each.name == "v3.1")
    parsed = join_events(parse(fixture, list(fixture.text), max_calls=1))
    assert parsed.tool_calls == (ToolCall("get_weather", PARIS),)
    assert parsed.content == ""


def test_at_most_128_calls_are_read():
    text = V3_OPEN + v31_call("now", "{}") * 130 + V3_CLOSE
    parsed = join_events(parse(Fixture("", "deepseek-v3.1", text, start="closed"), [text]))
    assert len(parsed.tool_calls) == 128
    assert parsed.content == v31_call("now", "{}") * 2


@pytest.mark.parametrize(
    ("format_name", "text"),
    [
        ("hermes", "<tool_call>" * 20_000),
        ("hermes", "<tool_call>" + '{"name": "now", "arguments": {"a": "' + "<tool_call>" * 20_000),
        ("hermes", "\n" * 200_000),
        ("qwen3", " " * 200_000),
        ("llama3-json", " " * 200_000),
        ("deepseek-v3.1", V3_OPEN + "<｜tool▁call▁begin｜>" + "x" * 200_000),
        (
            "deepseek-v3.2",
            '<｜DSML｜function_calls><｜DSML｜invoke name="now"><｜DSML｜parameter name="' + "x" * 200_000,
        ),
        ("mistral", '[TOOL_CALLS]now[ARGS]{"a": "' + "\\" * 200_000),
    ],
)
def test_hostile_answers_come_back_whole_and_in_linear_time(format_name: str, text: str):
    fixture = Fixture("", format_name, text)
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    begin_s = time.process_time()
    events = parse(fixture, pieces)
    assert time.process_time() - begin_s < 5  # a quadratic reader takes minutes
    assert join_events(events).content == text


def test_one_call_is_bounded():
    text = V3_OPEN + '<｜tool▁call▁begin｜>now<｜tool▁sep｜>{"a": "' + "x" * (1 << 20)
    assert join_events(parse(Fixture("", "deepseek-v3.1", text, start="closed"), [text, "xyz"])).content == text + "xyz"
