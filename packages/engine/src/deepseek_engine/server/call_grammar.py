"""When the tools of a request are a matter of grammar, and which one."""

from typing import Any

from deepseek_client.types import ChatCompletionRequest, SamplingFields
from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.grammar.tool_calls import calls_source, text_or_calls_source
from deepseek_engine.server.errors import ApiError, unsupported
from deepseek_engine.server.job import Job
from deepseek_engine.text_parsers.tool_grammar import tool_grammar_spec


def needs_call_grammar(job: Job, answer: GrammarSource | None) -> bool:
    """Whether the model has to call, or may and has to do it right.

    Args:
        job: the request.
        answer: what its text has to follow.
    """
    tools = job.tools
    return bool(tools.tools) and (tools.choice == "required" or any(tools.strict) or answer is not None)


def call_grammar(job: Job, answer: GrammarSource | None) -> GrammarSource:
    """The grammar of an answer that may, or has to, call tools.

    Raises:
        ToolSchemaError: a strict tool's schema cannot be followed.
        GrammarError: all together is too large.
        ApiError: 400, the model's calls cannot be put into a grammar, or the answer's own grammar goes with no calls.
    """
    assert job.parser is not None
    tools, answer_format = job.tools, job.parser.format
    spec = tool_grammar_spec(answer_format, tools.tools, is_parallel=tools.is_parallel)
    if spec is None:
        field = "tool_choice" if tools.choice == "required" else "tools" if answer is None else "response_format"
        raise unsupported(
            field, f"{field}: calls of the format {answer_format.name!r} cannot be put into a grammar: use auto alone"
        )
    markup = tuple(sorted(answer_format.tags))
    if tools.choice == "required":
        return calls_source(spec, tools.strict, markup)
    if answer is None:
        return text_or_calls_source(spec, tools.strict, markup)
    if answer.kind != "ebnf":
        raise ApiError(400, "a structural tag says all of an answer: leave tools out", param="tools")
    return calls_source(spec, tools.strict, markup, answer)


def request_tools(request: SamplingFields) -> list[dict[str, Any]]:
    """The tools as the caller numbers them."""
    return (request.tools or []) if isinstance(request, ChatCompletionRequest) else []
