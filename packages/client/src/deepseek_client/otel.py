"""OpenTelemetry spans of model calls, as middleware: `DeepSeek(middleware=[tracing()])`. The extra `otel`.

One client span an attempt, by the conventions for generative AI: operation, model, token counts, finish reasons, the
status, and the error. The caller's trace goes on at the server through `traceparent`. Prompts and answers stay out
unless `capture_content` is set. Source: opentelemetry.io/docs/specs/semconv/gen-ai.
"""

import json
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

from deepseek_client import __version__
from deepseek_client.middleware import (
    AsyncHTTPResponse,
    AsyncMiddleware,
    AsyncSend,
    HTTPResponse,
    Middleware,
    Send,
)
from deepseek_client.request import HTTPRequest
from deepseek_client.sse import SSEError, SSEParser

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
except ImportError as error:  # pragma: no cover  the extra is not installed
    raise ImportError("deepseek_client.otel needs OpenTelemetry: pip install 'deepseek-client[otel]'") from error

_OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/generate": "generate_content",
}
_REQUEST_FIELDS = {
    "model": "model",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
}
_LAST_EVENTS = 3
"""The finish reason, the token counts and `[DONE]` stand in the last events of a stream."""


def tracing(tracer_provider: TracerProvider | None = None, *, capture_content: bool = False) -> Middleware:
    """Middleware of DeepSeek that makes a span of each attempt.

    Args:
        tracer_provider: the global one by default.
        capture_content: put prompts and answers into the spans too.
    """

    def trace_attempt(request: HTTPRequest, send: Send) -> HTTPResponse:
        attempt = _Attempt(request, tracer_provider, capture_content=capture_content)
        try:
            response = send(attempt.request)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.begin(response.status, response.headers)
        return replace(response, chunks=_watch(response.chunks, attempt))

    return trace_attempt


def async_tracing(tracer_provider: TracerProvider | None = None, *, capture_content: bool = False) -> AsyncMiddleware:
    """Middleware of AsyncDeepSeek that makes a span of each attempt; arguments as for `tracing`."""

    async def trace_attempt(request: HTTPRequest, send: AsyncSend) -> AsyncHTTPResponse:
        attempt = _Attempt(request, tracer_provider, capture_content=capture_content)
        try:
            response = await send(attempt.request)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.begin(response.status, response.headers)
        return replace(response, chunks=_watch_async(response.chunks, attempt))

    return trace_attempt


def _watch(chunks: Iterator[bytes], attempt: "_Attempt") -> Iterator[bytes]:
    try:
        for chunk in chunks:
            attempt.feed(chunk)
            yield chunk
    except BaseException as error:
        attempt.fail(error)
        raise
    attempt.end()


async def _watch_async(chunks: AsyncIterator[bytes], attempt: "_Attempt") -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            attempt.feed(chunk)
            yield chunk
    except BaseException as error:
        attempt.fail(error)
        raise
    attempt.end()


class _Attempt:
    """The span of one attempt. No I/O: the answer's bytes are fed in as they pass."""

    def __init__(self, request: HTTPRequest, provider: TracerProvider | None, *, capture_content: bool) -> None:
        url = urlsplit(request.url)
        self._operation = next((name for end, name in _OPERATIONS.items() if url.path.endswith(end)), None)
        self._captures = capture_content and self._operation is not None
        body: dict[str, Any] = request.json or {}
        tracer = trace.get_tracer("deepseek_client", __version__, provider)
        what = f"{self._operation} {body.get('model') or ''}".strip() if self._operation else request.method
        attributes = _request_attributes(self._operation, body) if self._operation else {}
        attributes |= {"http.request.method": request.method, "server.address": url.hostname or ""}
        if url.port is not None:
            attributes["server.port"] = url.port
        if request.retries_taken:
            attributes["http.request.resend_count"] = request.retries_taken
        self._span: Span = tracer.start_span(what, kind=SpanKind.CLIENT, attributes=attributes)
        if self._captures:
            given = body.get("messages") or body.get("input") or body.get("prompt")
            self._span.set_attribute("gen_ai.input.messages", json.dumps(given, ensure_ascii=False))
        headers = dict(request.headers)
        propagate.inject(headers, context=trace.set_span_in_context(self._span))
        self.request = replace(request, headers=headers)
        self._parser: SSEParser | None = None
        self._body = bytearray()
        self._first: str | None = None
        self._last: deque[str] = deque(maxlen=None if self._captures else _LAST_EVENTS)
        self._is_whole = False

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's head has come."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 400:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._parser = SSEParser()

    def feed(self, chunk: bytes) -> None:
        """Bytes of the body."""
        if self._parser is None:
            if self._operation is not None:
                self._body += chunk
            return
        try:
            events = self._parser.feed(chunk)
        except SSEError:
            return  # the client says so itself
        for event in events:
            if self._first is None:
                self._first = event.data
                self._span.add_event("gen_ai.first_chunk")
            self._is_whole = event.data == "[DONE]" or event.event in ("response.completed", "response.incomplete")
            self._last.append(event.data)

    def end(self) -> None:
        """The body is over."""
        for answer in self._answers():
            self._span.set_attributes(_response_attributes(answer))
        if self._captures:
            texts = [_text_of(answer) for answer in self._answers()]
            self._span.set_attribute("gen_ai.output.messages", json.dumps("".join(texts), ensure_ascii=False))
        self._span.end()

    def fail(self, error: BaseException) -> None:
        """The attempt broke, or its caller left."""
        if not self._is_whole:
            self._span.set_attribute(
                "error.type", "cancelled" if isinstance(error, GeneratorExit) else type(error).__name__
            )
            if isinstance(error, Exception):
                self._span.record_exception(error)
                self._span.set_status(Status(StatusCode.ERROR))
        self.end()

    def _answers(self) -> list[dict[str, Any]]:
        """The JSON objects that say something of the answer, in order."""
        if self._parser is None:
            return [answer for answer in [_object(self._body)] if answer is not None]
        texts = [] if self._first is None or self._first in self._last else [self._first]
        return [answer for answer in map(_object, [*texts, *self._last]) if answer is not None]


def _object(text: str | bytes | bytearray) -> dict[str, Any] | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _request_attributes(operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "deepseek"}
    for field, name in _REQUEST_FIELDS.items():
        if body.get(field) is not None:
            attributes[f"gen_ai.request.{name}"] = body[field]
    stop = body.get("stop")
    if stop:
        attributes["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    return attributes


def _response_attributes(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer, or an event of a stream, says: its id, model, token counts, and why it ended."""
    answer = answer.get("response") or answer
    found: dict[str, Any] = {}
    for field in ("id", "model"):
        if isinstance(answer.get(field), str):
            found[f"gen_ai.response.{field}"] = answer[field]
    usage = cast("Mapping[str, Any]", answer.get("usage") or {})
    for field, names in (
        ("input", ("prompt_tokens", "input_tokens")),
        ("output", ("completion_tokens", "output_tokens")),
    ):
        for name in names:
            if isinstance(usage.get(name), int):
                found[f"gen_ai.usage.{field}_tokens"] = usage[name]
    if isinstance(usage.get("prompt_cache_hit_tokens"), int):
        found["gen_ai.usage.cache_read.input_tokens"] = usage["prompt_cache_hit_tokens"]
    choices = cast("list[Mapping[str, Any]]", answer.get("choices") or [answer])
    reasons = [choice["finish_reason"] for choice in choices if isinstance(choice.get("finish_reason"), str)]
    if reasons:
        found["gen_ai.response.finish_reasons"] = reasons
    return found


def _text_of(answer: Mapping[str, Any]) -> str:
    """The text that an answer, or an event of a stream, adds."""
    if answer.get("type") == "response.output_text.delta":
        return str(answer.get("delta") or "")
    choices = cast("list[Mapping[str, Any]]", answer.get("choices") or [answer])
    parts = [cast("Mapping[str, Any]", choice.get("message") or choice.get("delta") or choice) for choice in choices]
    found: list[Any] = [part.get("content") or part.get("text") for part in parts]
    return "".join(text for text in found if isinstance(text, str))
