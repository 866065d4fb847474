"""The wire contract: what clients send and servers answer. Imports pydantic and nothing of ours."""

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
from deepseek_client.types.generate import GenerateRequest, Generation, GenerationChunk
from deepseek_client.types.models import Model, ModelList
from deepseek_client.types.sampling import SamplingFields, StreamOptions
from deepseek_client.types.usage import CompletionTokensDetails, PromptTokensDetails, Usage

__all__ = [
    "AnswerModel",
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
    "FunctionCall",
    "GenerateRequest",
    "Generation",
    "GenerationChunk",
    "Model",
    "ModelList",
    "PromptLogprob",
    "PromptTokensDetails",
    "SamplingFields",
    "StreamOptions",
    "TokenLogprob",
    "ToolCall",
    "TopLogprob",
    "Usage",
    "WireModel",
    "error_body",
]
