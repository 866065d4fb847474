"""Traces: from the caller's header to the engine's, and spans without content."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deepseek_gateway.edge.traceparent import TraceParent
from deepseek_gateway.edge.tracing import Tracing
from deepseek_gateway.testing.stack import Stack

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"


def traced(stack: Stack) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    stack.gateway.tracing = Tracing(SimpleSpanProcessor(exporter))
    return exporter


async def test_a_request_becomes_a_span_below_the_callers_and_above_the_engines(stack: Stack) -> None:
    exporter = traced(stack)
    await stack.caller.post(body={"prompt": "my secret prompt", "model": "fake-model"}, headers={"traceparent": HEADER})
    await stack.row()
    (span,) = exporter.get_finished_spans()
    assert (format(span.context.trace_id, "032x"), format(span.parent.span_id, "016x")) == (TRACE, SPAN)
    sent = TraceParent.parse(stack.engine.headers[-1]["traceparent"])
    assert sent is not None
    assert (sent.trace_id, sent.span_id) == (TRACE, format(span.context.span_id, "016x"))
    attributes = dict(span.attributes)
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.request.model"] == "fake-model"
    assert attributes["gen_ai.usage.output_tokens"] == 8
    assert attributes["http.response.status_code"] == 200
    everything = span.to_json()
    assert "secret" not in everything
    assert not re.search(r"\bw1\b", everything)  # a request's id may hold these two letters
    assert stack.caller.key.split("_")[2] not in everything


async def test_without_a_header_a_trace_begins_here_and_an_unsampled_one_gets_no_span(stack: Stack) -> None:
    exporter = traced(stack)
    await stack.caller.post()
    await stack.caller.post(headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    await stack.caller.get("/health")
    await stack.row()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert stack.engine.headers[-1]["traceparent"].endswith("-00")


async def test_without_tracing_the_callers_trace_still_reaches_the_engine(stack: Stack) -> None:
    await stack.caller.post(headers={"traceparent": HEADER})
    await stack.caller.post(headers={"traceparent": "00-broken"})
    first, second = stack.engine.headers[-2:]
    assert TRACE in first["traceparent"]
    assert "traceparent" not in second


@pytest.mark.parametrize(
    "text", ["", "00", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"{HEADER}-x"]
)
def test_what_the_standard_does_not_allow_is_no_trace(text: str) -> None:
    assert TraceParent.parse(text) is None


@given(st.text(max_size=80))
def test_any_header_is_parsed_or_ignored(text: str) -> None:
    parsed = TraceParent.parse(text)
    assert parsed is None or TraceParent.parse(parsed.header) == parsed
