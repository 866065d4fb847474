"""Typed SDK for DeepSeek servers: `DeepSeek` and `AsyncDeepSeek`, their results and their errors.

Names are imported when they are first used, so that a program which needs only `deepseek_client.types` or
`deepseek_client.sse` loads no HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_client.client import AsyncDeepSeek, DeepSeek
    from deepseek_client.errors import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConfigurationError,
        ConflictError,
        ContextLengthError,
        DeepSeekError,
        EmptyResponseError,
        InsufficientBalanceError,
        InternalServerError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        RateLimitError,
        RequestTooLargeError,
        ResponseError,
        ResponseValidationError,
        StreamError,
        StreamProtocolError,
        StreamTruncatedError,
        UnprocessableEntityError,
    )
    from deepseek_client.settings import Timeout
    from deepseek_client.streaming import AsyncStream, AsyncTextStream, Stream, TextStream
    from deepseek_client.types.chat import ChatCompletion, ChatCompletionChunk, ChatMessage
    from deepseek_client.types.completions import Completion
    from deepseek_client.types.generate import Generation
    from deepseek_client.types.models import Model, ModelList
    from deepseek_client.types.usage import Usage

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncDeepSeek",
    "AsyncStream",
    "AsyncTextStream",
    "AuthenticationError",
    "BadRequestError",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatMessage",
    "Completion",
    "ConfigurationError",
    "ConflictError",
    "ContextLengthError",
    "DeepSeek",
    "DeepSeekError",
    "EmptyResponseError",
    "Generation",
    "InsufficientBalanceError",
    "InternalServerError",
    "Model",
    "ModelList",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestTooLargeError",
    "ResponseError",
    "ResponseValidationError",
    "Stream",
    "StreamError",
    "StreamProtocolError",
    "StreamTruncatedError",
    "TextStream",
    "Timeout",
    "UnprocessableEntityError",
    "Usage",
]

_NAMES_OF = {
    "client": (
        "AsyncDeepSeek",
        "DeepSeek",
    ),
    "errors": (
        "APIConnectionError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "ConfigurationError",
        "ConflictError",
        "ContextLengthError",
        "DeepSeekError",
        "EmptyResponseError",
        "InsufficientBalanceError",
        "InternalServerError",
        "NotFoundError",
        "OverloadedError",
        "PermissionDeniedError",
        "RateLimitError",
        "RequestTooLargeError",
        "ResponseError",
        "ResponseValidationError",
        "StreamError",
        "StreamProtocolError",
        "StreamTruncatedError",
        "UnprocessableEntityError",
    ),
    "settings": ("Timeout",),
    "streaming": (
        "AsyncStream",
        "AsyncTextStream",
        "Stream",
        "TextStream",
    ),
    "types.chat": (
        "ChatCompletion",
        "ChatCompletionChunk",
        "ChatMessage",
    ),
    "types.completions": ("Completion",),
    "types.generate": ("Generation",),
    "types.models": (
        "Model",
        "ModelList",
    ),
    "types.usage": ("Usage",),
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
