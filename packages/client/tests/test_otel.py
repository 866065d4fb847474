"""Spans of model calls: what they say, and that prompts stay out."""

import json
import subprocess
import sys

import pytest

from deepseek_client import RateLimitError, StreamTruncatedError

sdk = pytest.importorskip("opentelemetry.sdk.trace")


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.provider = provider
    yield exporter
    provider.shutdown()


@pytest.fixture
def traced(request, connect, spans):
    from deepseek_client.otel import async_tracing, tracing

    make = tracing if request.node.callspec.params["connect"] == "sync" else async_tracing

    def traced(*, capture_content=False, **options):
        middleware = [make(spans.provider, capture_content=capture_content)]
        return connect(middleware=middleware, **{"default_model": "m", **options})

    return traced


async def test_a_call_is_a_span_with_model_tokens_and_the_end_s_reason(server, traced, spans, kit):
    server.script(kit.reply(kit.CHAT | {"usage": kit.USAGE | {"prompt_cache_hit_tokens": 2}}))
    await kit.settle(traced().chat.completions.create(messages=kit.MESSAGES, max_tokens=9, temperature=0.5, stop="x"))
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind.name) == ("chat m", "CLIENT")
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "deepseek",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.response.id": "chat-1",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
    }
    trace_id = format(span.context.trace_id, "032x")
    assert server.requests[0].headers["traceparent"].split("-")[1] == trace_id


async def test_a_stream_s_span_ends_with_it_and_prompts_stay_out(server, traced, spans, kit):
    last = kit.chat_event("lo", "stop") | {"usage": kit.USAGE}
    server.script(kit.events(kit.chat_event("Hel"), *[kit.chat_event(".")] * 5, last))
    stream = await kit.settle(traced().chat.completions.create(messages=kit.MESSAGES, stream=True))
    assert spans.get_finished_spans() == ()
    await kit.collect(stream)
    (span,) = spans.get_finished_spans()
    assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert [event.name for event in span.events] == ["gen_ai.first_chunk"]
    assert span.status.is_unset
    assert "Hi" not in span.to_json()
    assert "Hel" not in span.to_json()


async def test_content_is_captured_where_that_is_asked_for(server, traced, spans, kit):
    server.script(
        kit.events(kit.chat_event("Hel"), kit.chat_event("lo", "stop")), kit.reply(kit.CHAT), kit.reply(kit.GENERATION)
    )
    client = traced(capture_content=True)
    await kit.collect(await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, stream=True)))
    await kit.settle(client.chat.completions.create(messages=kit.MESSAGES))
    await kit.settle(client.generate("Hi"))
    streamed, whole, generated = spans.get_finished_spans()
    for span in (streamed, whole):
        assert json.loads(span.attributes["gen_ai.input.messages"]) == kit.MESSAGES
        assert json.loads(span.attributes["gen_ai.output.messages"]) == "Hello"
    assert generated.name == "generate_content m"
    assert json.loads(generated.attributes["gen_ai.output.messages"]) == "Hello"


async def test_each_attempt_is_a_span_and_failures_say_what_they_are(server, traced, spans, kit):
    server.script(kit.reply({"error": {"message": "later"}}, 429, retry_after="0"))
    with pytest.raises(RateLimitError):
        await kit.settle(traced(max_retries=1).generate("Hi"))
    first, second = spans.get_finished_spans()
    for span in (first, second):
        assert (span.attributes["error.type"], span.status.status_code.name) == ("429", "ERROR")
    assert "http.request.resend_count" not in first.attributes
    assert second.attributes["http.request.resend_count"] == 1


async def test_a_broken_stream_and_one_that_is_left_say_so(server, traced, spans, kit):
    def breaks(connection):
        connection.head()
        connection.chunk(b'data: {"id": "x", "text": "Hel"}\n\n')
        return False

    def endless(connection):
        connection.head()
        connection.chunk(b'data: {"id": "x", "text": "Hel"}\n\n')
        connection.until_closed()

    client = traced(max_retries=0)
    server.script(breaks)
    with pytest.raises(StreamTruncatedError):
        await kit.collect(client.generate_stream("Hi"))
    server.script(endless)
    async with kit.entered(client.generate_stream("Hi")) as stream:
        await kit.take(stream)
    broken, left = spans.get_finished_spans()
    assert (broken.attributes["error.type"], broken.status.status_code.name) == ("APIConnectionError", "ERROR")
    assert left.attributes["error.type"] == "cancelled"
    assert left.status.is_unset


async def test_responses_and_plain_calls_have_spans_too(server, traced, spans, kit):
    usage = {"input_tokens": 4, "output_tokens": 5, "total_tokens": 9}
    response = {"id": "r", "model": "m", "status": "completed", "output": [], "usage": usage}
    begun = {"type": "response.created", "response": response | {"status": "in_progress", "usage": None}}
    ended = {"type": "response.completed", "response": response}
    server.script(kit.events(begun, ended, done=False), kit.reply({"data": []}))
    client = traced()
    await kit.collect(await kit.settle(client.responses.create(input="Hi", stream=True)))
    await kit.settle(client.models.list())
    streamed, listed = spans.get_finished_spans()
    assert streamed.attributes["gen_ai.usage.input_tokens"] == 4
    assert streamed.attributes["gen_ai.response.id"] == "r"
    assert (listed.name, "gen_ai.operation.name" in listed.attributes) == ("GET", False)


def test_nothing_of_it_is_loaded_without_being_asked_for():
    code = "import sys, deepseek_client.client; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
