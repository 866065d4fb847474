"""Typed SDK for DeepSeek servers: `DeepSeek` and `AsyncDeepSeek`, their results and their errors.

Names are imported when they are first used, so that a program which needs only `deepseek_client.types` or
`deepseek_client.sse` loads no HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_client.chat_stream import AsyncChatStream, ChatStream
    from deepseek_client.client import AsyncDeepSeek, DeepSeek
    from deepseek_client.endpoints import TokenCount
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
    from deepseek_client.files import AsyncPager, Pager
    from deepseek_client.middleware import AsyncHTTPResponse, HTTPResponse
    from deepseek_client.parsing import ParsedCompletion
    from deepseek_client.prices import ModelPrice, PriceTable, Rates, UsageTotals, cost
    from deepseek_client.raw import AsyncStreamingResponse, RawResponse, StreamingResponse
    from deepseek_client.request import HTTPRequest
    from deepseek_client.retries import Retry
    from deepseek_client.settings import Timeout
    from deepseek_client.streaming import AsyncStream, AsyncTextStream, Stream, TextStream
    from deepseek_client.tools.loop import ToolRun
    from deepseek_client.tools.tool import Tool, tool
    from deepseek_client.types.account import Balance
    from deepseek_client.types.base import Seam
    from deepseek_client.types.chat import ChatCompletion, ChatCompletionChunk, ChatMessage
    from deepseek_client.types.completions import Completion
    from deepseek_client.types.files import FileDeleted, FileList, FileObject
    from deepseek_client.types.generate import Generation
    from deepseek_client.types.models import Model, ModelList
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
    from deepseek_client.types.usage import Usage
    from deepseek_client.types.web import SearchResult, SearchResults, WebPage

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
    "retries": ("Retry",),
    "chat_stream": (
        "AsyncChatStream",
        "ChatStream",
    ),
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
    "client": (
        "AsyncDeepSeek",
        "DeepSeek",
    ),
    "endpoints": ("TokenCount",),
    "errors": (
        "APIConnectionError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "BlankJSONError",
        "ConfigurationError",
        "ConflictError",
        "ConnectError",
        "ConnectTimeout",
        "ContentFilterFinishReasonError",
        "ContextLengthError",
        "DeadlineExceeded",
        "DeepSeekError",
        "EmptyResponseError",
        "FinishReasonError",
        "FirstTokenTimeout",
        "GatewayTimeoutError",
        "IdleTimeout",
        "InsufficientBalanceError",
        "InternalServerError",
        "LengthFinishReasonError",
        "NotFoundError",
        "OverloadedError",
        "PermissionDeniedError",
        "PoolTimeout",
        "RateLimitError",
        "ReasoningContentRequiredError",
        "RequestTooLargeError",
        "ResponseError",
        "ResponseValidationError",
        "ServerResourceError",
        "StreamClosedError",
        "StreamError",
        "StreamProtocolError",
        "StreamTruncatedError",
        "TLSError",
        "ToolArgumentsError",
        "ToolRoundsError",
        "UnprocessableEntityError",
    ),
    "files": (
        "AsyncPager",
        "Pager",
    ),
    "middleware": (
        "AsyncHTTPResponse",
        "HTTPResponse",
    ),
    "parsing": ("ParsedCompletion",),
    "prices": (
        "ModelPrice",
        "PriceTable",
        "Rates",
        "UsageTotals",
        "cost",
    ),
    "raw": (
        "AsyncStreamingResponse",
        "RawResponse",
        "StreamingResponse",
    ),
    "request": ("HTTPRequest",),
    "settings": ("Timeout",),
    "streaming": (
        "AsyncStream",
        "AsyncTextStream",
        "Stream",
        "TextStream",
    ),
    "tools.loop": ("ToolRun",),
    "tools.tool": (
        "Tool",
        "tool",
    ),
    "types.account": ("Balance",),
    "types.base": ("Seam",),
    "types.chat": (
        "ChatCompletion",
        "ChatCompletionChunk",
        "ChatMessage",
    ),
    "types.completions": ("Completion",),
    "types.files": (
        "FileDeleted",
        "FileList",
        "FileObject",
    ),
    "types.generate": ("Generation",),
    "types.models": (
        "Model",
        "ModelList",
    ),
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
    "types.usage": ("Usage",),
    "types.web": (
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
