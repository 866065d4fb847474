"""The wire contract: what clients send and servers answer. Imports pydantic and nothing of ours."""

from deepseek_client.types.account import Balance, BalanceInfo
from deepseek_client.types.base import AnswerModel, WireModel
from deepseek_client.types.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    ChoiceLogprobs,
    ContentPart,
    FunctionCall,
    TokenLogprob,
    ToolCall,
    TopLogprob,
)
from deepseek_client.types.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    PromptLogprob,
)
from deepseek_client.types.embeddings import Embedding, EmbeddingList, EmbeddingRequest
from deepseek_client.types.errors import ErrorBody, ErrorDetail, error_body
from deepseek_client.types.files import ExpiresAfter, FileDeleted, FileList, FileObject
from deepseek_client.types.generate import GenerateRequest, Generation, GenerationChunk
from deepseek_client.types.models import Model, ModelList
from deepseek_client.types.responses import (
    Response,
    ResponseArgumentsDelta,
    ResponseEvent,
    ResponseItem,
    ResponseItemEvent,
    ResponseLifecycleEvent,
    ResponsePart,
    ResponseReasoningDelta,
    ResponseTextDelta,
    ResponseUsage,
)
from deepseek_client.types.sampling import SamplingFields, StreamOptions
from deepseek_client.types.usage import CompletionTokensDetails, PromptTokensDetails, Usage
from deepseek_client.types.web import SearchResult, SearchResults, WebPage

__all__ = [
    "AnswerModel",
    "Balance",
    "BalanceInfo",
    "ChatChoice",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatDelta",
    "ChatMessage",
    "ChoiceLogprobs",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionTokensDetails",
    "ContentPart",
    "Embedding",
    "EmbeddingList",
    "EmbeddingRequest",
    "ErrorBody",
    "ErrorDetail",
    "ExpiresAfter",
    "FileDeleted",
    "FileList",
    "FileObject",
    "FunctionCall",
    "GenerateRequest",
    "Generation",
    "GenerationChunk",
    "Model",
    "ModelList",
    "PromptLogprob",
    "PromptTokensDetails",
    "Response",
    "ResponseArgumentsDelta",
    "ResponseEvent",
    "ResponseItem",
    "ResponseItemEvent",
    "ResponseLifecycleEvent",
    "ResponsePart",
    "ResponseReasoningDelta",
    "ResponseTextDelta",
    "ResponseUsage",
    "SamplingFields",
    "SearchResult",
    "SearchResults",
    "StreamOptions",
    "TokenLogprob",
    "ToolCall",
    "TopLogprob",
    "Usage",
    "WebPage",
    "WireModel",
    "error_body",
]
