"""What the grammar of tool calls allows is what the parser reads."""

import json

import pytest
import xgrammar

from deepseek_engine.grammar.tool_calls import ToolSchemaError, calls_source, text_or_calls_source
from deepseek_engine.text_parsers.events import ParsedAnswer, ToolCall, join_events
from deepseek_engine.text_parsers.markup import FORMATS
from deepseek_engine.text_parsers.parser import AnswerParser, ParserSpec
from deepseek_engine.text_parsers.tool_grammar import tool_grammar_spec

TOOLS = [
    {"type": "function", "function": {"name": "now"}},
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
]
ARGUMENTS = '{"city": "Paris", "days": 3}'
DSML_ARGUMENTS = (
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
)
CONSTRAINED = [name for name, answer_format in FORMATS.items() if tool_grammar_spec(answer_format, TOOLS)]


@pytest.fixture(scope="module")
def compiler() -> xgrammar.GrammarCompiler:
    letters = [bytes([byte]) for byte in range(256)]
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([*letters, b""], stop_token_ids=[256]), max_threads=1)


def _accepts(compiler: xgrammar.GrammarCompiler, tag: str, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag))
    return matcher.accept_string(text) and matcher.accept_token(256)


def test_every_format_that_writes_json_or_dsml_can_be_constrained():
    assert set(FORMATS) - set(CONSTRAINED) == {"plain", "think", "llama3-pythonic"}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_what_the_grammar_allows_the_parser_reads(compiler: xgrammar.GrammarCompiler, name: str):
    spec = tool_grammar_spec(FORMATS[name], TOOLS)
    assert spec is not None
    tag = spec.tags[1]
    call = tag.begin + (DSML_ARGUMENTS if spec.is_dsml else ARGUMENTS) + tag.end
    for count in (1, 2):
        text = spec.begin + spec.separator.join([call] * count) + spec.end
        assert _accepts(compiler, calls_source(spec, (True, True), ()).text, text)
        parser = AnswerParser(ParserSpec(FORMATS[name], "closed", frozenset({"now", "weather"})))
        parsed = join_events(parser.push(text) + parser.finish())
        assert parsed == ParsedAnswer("", "", (ToolCall("weather", ARGUMENTS),) * count)


@pytest.mark.parametrize("name", CONSTRAINED)
def test_the_grammar_allows_nothing_but_calls_that_fit_their_schemas(compiler: xgrammar.GrammarCompiler, name: str):
    spec = tool_grammar_spec(FORMATS[name], TOOLS, is_parallel=False)
    assert spec is not None
    tag, structural_tag = spec.tags[1], calls_source(spec, (True, True), ()).text
    arguments = DSML_ARGUMENTS if spec.is_dsml else ARGUMENTS
    call = tag.begin + arguments + tag.end
    assert _accepts(compiler, structural_tag, spec.begin + call + spec.end)
    for wrong in (
        "Sure.",
        "",
        spec.begin + spec.end,
        spec.begin + tag.begin.replace("weather", "rm") + arguments + tag.end + spec.end,
        spec.begin + call.replace("city", "town") + spec.end,
        spec.begin + call.replace("3", "true") + spec.end,
        spec.begin + spec.separator.join([call, call]) + spec.end,
    ):
        assert not _accepts(compiler, structural_tag, wrong), wrong


def test_a_named_function_is_the_only_one_in_its_grammar():
    spec = tool_grammar_spec(FORMATS["hermes"], TOOLS[:1], is_parallel=False)
    assert spec is not None
    assert [json.loads(tag.begin.split("\n")[1] + "0}")["name"] for tag in spec.tags] == ["now"]


@pytest.mark.parametrize("name", CONSTRAINED)
def test_beside_text_a_begun_call_has_to_fit_its_schema(compiler: xgrammar.GrammarCompiler, name: str):
    spec = tool_grammar_spec(FORMATS[name], TOOLS)
    assert spec is not None
    tag, structural_tag = spec.tags[1], text_or_calls_source(spec, (True, True), ()).text
    call = tag.begin + (DSML_ARGUMENTS if spec.is_dsml else ARGUMENTS) + tag.end
    calls = spec.begin + spec.separator.join([call, call]) + spec.end
    before = "Sure. " if spec.trigger else ""
    assert _accepts(compiler, structural_tag, "Sure.")
    assert _accepts(compiler, structural_tag, before + calls)
    for wrong in (calls.replace("weather", "rm"), calls.replace("city", "town"), calls.replace("3", "true")):
        assert not _accepts(compiler, structural_tag, before + wrong), wrong


def test_a_schema_that_no_grammar_can_follow_is_an_error_for_a_strict_tool_and_any_object_for_another(
    compiler: xgrammar.GrammarCompiler,
):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    spec = tool_grammar_spec(FORMATS["hermes"], [tool])
    assert spec is not None
    with pytest.raises(ToolSchemaError, match="not is not supported"):
        calls_source(spec, (True,), ())
    text = '<tool_call>\n{"name": "f", "arguments": {"x": [1]}}\n</tool_call>'
    assert _accepts(compiler, calls_source(spec, (False,), ()).text, text)


@pytest.mark.parametrize("value", ["a < b", "</div>", "<</｜", "x</｜DSML", "{}\n", "</"])
def test_text_of_a_dsml_parameter_is_anything_but_its_closing_tag(compiler: xgrammar.GrammarCompiler, value: str):
    spec = tool_grammar_spec(FORMATS["deepseek-v3.2"], TOOLS)
    assert spec is not None
    parameter = f'<｜DSML｜parameter name="city" string="true">{value}</｜DSML｜parameter>\n'
    text = spec.begin + spec.tags[1].begin + parameter + spec.tags[1].end + spec.end
    assert _accepts(compiler, calls_source(spec, (True, True), ()).text, text) == ("</｜" not in value)
