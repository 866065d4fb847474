"""OpenTelemetry: one span a request, with the names of the `gen_ai` conventions. Prompts and answers are in none.

The SDK is the extra `otel`, and loaded only when an endpoint is set.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

import deepseek_gateway
from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.edge.traceparent import TraceParent
from deepseek_gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/generate": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Routes that get a span; looks at our state and administration do not."""


class Tracing:
    """Spans of one gateway.

    Args:
        processor: takes spans that are over; it must not block.
    """

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import Resource

        version = deepseek_gateway.__version__
        self._resource = Resource.create({"service.name": "deepseek-gateway", "service.version": version})
        self._processor = processor

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Send to a collector, by OTLP over HTTP, in batches from a thread; a full queue drops spans.

        Raises:
            ConfigurationError: the SDK is not installed.
        """
        try:
            export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
            otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ModuleNotFoundError as error:
            message = f"GATEWAY_OTEL_ENDPOINT needs {error.name}: pip install 'deepseek-gateway[otel]'"
            raise ConfigurationError(message) from None
        url = f"{endpoint.rstrip('/')}/v1/traces"
        return cls(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=url, timeout=5)))

    def end(self, context: RequestContext, parent: TraceParent | None, own: TraceParent) -> None:
        """Hand over the span of a request that is over."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = OPERATIONS.get(context.route)
        if operation is None or not own.is_sampled:
            return
        now_ns = time.time_ns()
        failed = context.status >= 500
        span = ReadableSpan(
            name=f"{operation} {context.model}" if context.model and context.status < 400 else operation,
            context=_context(own, is_remote=False),
            parent=None if parent is None else _context(parent, is_remote=True),
            resource=self._resource,
            attributes=_attributes(context, operation),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=now_ns - int(context.elapsed_ms() * 1e6),
            end_time=now_ns,
        )
        self._processor.on_end(span)

    def close(self) -> None:
        """Send what waits."""
        self._processor.shutdown()


def _attributes(context: RequestContext, operation: str) -> dict[str, str | int | float | list[str]]:
    tokens = context.tokens
    found: dict[str, str | int | float | list[str] | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "deepseek",
        "gen_ai.request.model": None if context.model is None else context.model[:200],
        "gen_ai.usage.input_tokens": None if tokens is None else tokens.prompt,
        "gen_ai.usage.output_tokens": None if tokens is None else tokens.completion,
        "gen_ai.usage.cache_read.input_tokens": None if tokens is None else tokens.cached,
        "gen_ai.server.time_to_first_token": None if context.ttft_ms is None else context.ttft_ms / 1000,
        "http.route": context.route,
        "http.request.method": "POST",
        "http.response.status_code": context.status,
        "error.type": str(context.status) if context.status >= 500 else None,
        "deepseek.request_id": context.request_id,
        "deepseek.key_id": context.key_id,
        "deepseek.outcome": context.outcome,
    }
    return {name: value for name, value in found.items() if value is not None}


def _context(span: TraceParent, *, is_remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if span.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), is_remote, flags)
