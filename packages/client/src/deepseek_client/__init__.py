"""Typed SDK for DeepSeek servers: `DeepSeek` and `AsyncDeepSeek`, their results and their errors.

Names other than errors are imported when they are first used, so that a program which needs only
`deepseek_client.types` or `deepseek_client.sse` loads no HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from deepseek_client.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BlankJSONError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    ConnectTimeout,
    ContentFilterFinishReasonError,
    ContextLengthError,
    DeadlineExceeded,
    DeepSeekError,
    EmptyResponseError,
    FinishReasonError,
    FirstTokenTimeout,
    GatewayTimeoutError,
    IdleTimeout,
    InsufficientBalanceError,
    InternalServerError,
    LengthFinishReasonError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PoolTimeout,
    RateLimitError,
    ReasoningContentRequiredError,
    RequestTooLargeError,
    ResponseError,
    ResponseValidationError,
    ServerResourceError,
    StreamClosedError,
    StreamError,
    StreamProtocolError,
    StreamTruncatedError,
    TLSError,
    ToolArgumentsError,
    ToolRoundsError,
    UnprocessableEntityError,
)

if TYPE_CHECKING:
    from deepseek_client.client import AsyncDeepSeek, DeepSeek
    from deepseek_client.endpoints import AsyncPager, Pager, TokenCount
    from deepseek_client.events import (
        ContentDelta,
        ContentDone,
        Finish,
        KeepAlive,
        ReasoningDelta,
        ReasoningDone,
        ToolCallDelta,
        ToolCallDone,
        UsageReport,
    )
    from deepseek_client.middleware import AsyncHTTPResponse, HTTPResponse
    from deepseek_client.pacing import Retry
    from deepseek_client.prices import ModelPrice, PriceTable, Rates, UsageTotals, cost
    from deepseek_client.raw import AsyncStreamingResponse, RawResponse, StreamingResponse
    from deepseek_client.request import HTTPRequest
    from deepseek_client.rounds import ParsedCompletion, ToolRun
    from deepseek_client.settings import Timeout
    from deepseek_client.streaming import AsyncChatStream, AsyncStream, AsyncTextStream, ChatStream, Stream, TextStream
    from deepseek_client.tools import Tool, tool
    from deepseek_client.types.base import Seam, Usage
    from deepseek_client.types.chat import ChatCompletion, ChatCompletionChunk, ChatMessage, Completion, Generation
    from deepseek_client.types.responses import (
        Response,
        ResponseArgumentsDelta,
        ResponseEvent,
        ResponseItem,
        ResponseItemEvent,
        ResponseLifecycleEvent,
        ResponseReasoningDelta,
        ResponseTextDelta,
    )
    from deepseek_client.types.services import (
        Balance,
        FileDeleted,
        FileList,
        FileObject,
        Model,
        ModelList,
        SearchResult,
        SearchResults,
        WebPage,
    )

__version__ = "0.1.0"
"""Of the distribution too: the build reads it here, so that no import has to read package metadata."""

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncChatStream",
    "AsyncDeepSeek",
    "AsyncHTTPResponse",
    "AsyncPager",
    "AsyncStream",
    "AsyncStreamingResponse",
    "AsyncTextStream",
    "AuthenticationError",
    "BadRequestError",
    "Balance",
    "BlankJSONError",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatMessage",
    "ChatStream",
    "Completion",
    "ConfigurationError",
    "ConflictError",
    "ConnectError",
    "ConnectTimeout",
    "ContentDelta",
    "ContentDone",
    "ContentFilterFinishReasonError",
    "ContextLengthError",
    "DeadlineExceeded",
    "DeepSeek",
    "DeepSeekError",
    "EmptyResponseError",
    "FileDeleted",
    "FileList",
    "FileObject",
    "Finish",
    "FinishReasonError",
    "FirstTokenTimeout",
    "GatewayTimeoutError",
    "Generation",
    "HTTPRequest",
    "HTTPResponse",
    "IdleTimeout",
    "InsufficientBalanceError",
    "InternalServerError",
    "KeepAlive",
    "LengthFinishReasonError",
    "Model",
    "ModelList",
    "ModelPrice",
    "NotFoundError",
    "OverloadedError",
    "Pager",
    "ParsedCompletion",
    "PermissionDeniedError",
    "PoolTimeout",
    "PriceTable",
    "RateLimitError",
    "Rates",
    "RawResponse",
    "ReasoningContentRequiredError",
    "ReasoningDelta",
    "ReasoningDone",
    "RequestTooLargeError",
    "Response",
    "ResponseArgumentsDelta",
    "ResponseError",
    "ResponseEvent",
    "ResponseItem",
    "ResponseItemEvent",
    "ResponseLifecycleEvent",
    "ResponseReasoningDelta",
    "ResponseTextDelta",
    "ResponseValidationError",
    "Retry",
    "Seam",
    "SearchResult",
    "SearchResults",
    "ServerResourceError",
    "Stream",
    "StreamClosedError",
    "StreamError",
    "StreamProtocolError",
    "StreamTruncatedError",
    "StreamingResponse",
    "TLSError",
    "TextStream",
    "Timeout",
    "TokenCount",
    "Tool",
    "ToolArgumentsError",
    "ToolCallDelta",
    "ToolCallDone",
    "ToolRoundsError",
    "ToolRun",
    "UnprocessableEntityError",
    "Usage",
    "UsageReport",
    "UsageTotals",
    "WebPage",
    "cost",
    "tool",
]

_NAMES_OF = {
    "client": ("AsyncDeepSeek", "DeepSeek"),
    "endpoints": ("AsyncPager", "Pager", "TokenCount"),
    "events": (
        "ContentDelta",
        "ContentDone",
        "Finish",
        "KeepAlive",
        "ReasoningDelta",
        "ReasoningDone",
        "ToolCallDelta",
        "ToolCallDone",
        "UsageReport",
    ),
    "middleware": ("AsyncHTTPResponse", "HTTPResponse"),
    "pacing": ("Retry",),
    "prices": ("ModelPrice", "PriceTable", "Rates", "UsageTotals", "cost"),
    "raw": ("AsyncStreamingResponse", "RawResponse", "StreamingResponse"),
    "request": ("HTTPRequest",),
    "rounds": ("ParsedCompletion", "ToolRun"),
    "settings": ("Timeout",),
    "streaming": ("AsyncChatStream", "AsyncStream", "AsyncTextStream", "ChatStream", "Stream", "TextStream"),
    "tools": ("Tool", "tool"),
    "types.base": ("Seam", "Usage"),
    "types.chat": ("ChatCompletion", "ChatCompletionChunk", "ChatMessage", "Completion", "Generation"),
    "types.responses": (
        "Response",
        "ResponseArgumentsDelta",
        "ResponseEvent",
        "ResponseItem",
        "ResponseItemEvent",
        "ResponseLifecycleEvent",
        "ResponseReasoningDelta",
        "ResponseTextDelta",
    ),
    "types.services": (
        "Balance",
        "FileDeleted",
        "FileList",
        "FileObject",
        "Model",
        "ModelList",
        "SearchResult",
        "SearchResults",
        "WebPage",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
