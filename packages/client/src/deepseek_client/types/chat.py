"""The routes that generate: chats, `POST /v1/completions`, the one-shot `/v1/generate`; and `/v1/embeddings`."""

from typing import Any, Literal

from pydantic import AliasChoices, Field

from deepseek_client.types.base import AnswerModel, SamplingFields, Usage, WireList, WireModel

_REASONING = Field(default=None, validation_alias=AliasChoices("reasoning_content", "reasoning"))
"""vLLM calls the field `reasoning`; DeepSeek, SGLang and we call it `reasoning_content`. Read both, write ours."""


class FunctionCall(WireModel):
    """The function a model asks to be called; `arguments` is JSON text, in pieces while streaming."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(WireModel):
    """One tool call; `index` is set in stream deltas only."""

    id: str | None = None
    index: int | None = None
    type: Literal["function"] | str | None = None
    function: FunctionCall


class ContentPart(WireModel):
    """One part of a message's content. Text-only models read the parts of type `text`."""

    type: str
    text: str | None = None


class ChatMessage(WireModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] | str
    content: str | WireList[ContentPart] | None = None
    reasoning_content: str | None = _REASONING
    name: str | None = None
    tool_calls: WireList[ToolCall] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None


class ChatCompletionRequest(SamplingFields):
    """A conversation to continue."""

    messages: WireList[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: WireList[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    thinking: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TopLogprob(WireModel):
    """One candidate token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A generated token, its log-probability, and the most likely alternatives."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list[TopLogprob])


class ChoiceLogprobs(WireModel):
    """Log-probabilities of a choice's tokens, in order: those of its reasoning apart."""

    content: list[TokenLogprob] | None = None
    reasoning_content: list[TokenLogprob] | None = None


class ChatChoice(WireModel):
    """One answer."""

    index: int = 0
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None
    token_ids: list[int] | None = None


class ChatCompletion(AnswerModel):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"] | str = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatDelta(WireModel):
    """What a stream event adds to a choice."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = _REASONING
    tool_calls: list[ToolCall] | None = None


class ChatChunkChoice(WireModel):
    """One choice's part of a stream event."""

    index: int = 0
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(WireModel):
    """One event of a streamed chat. `choices` is empty in a trailing usage event."""

    id: str
    object: Literal["chat.completion.chunk"] | str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionRequest(SamplingFields):
    """A text, or the token ids of one, to continue. A list of texts, or of token-id lists, gives a choice for each."""

    prompt: str | WireList[str] | WireList[int] | WireList[WireList[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class CompletionLogprobs(WireModel):
    """Log-probabilities in OpenAI's legacy form: parallel lists, one entry a token."""

    tokens: list[str] = Field(default_factory=list[str])
    token_logprobs: list[float | None] = Field(default_factory=list[float | None])
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = Field(default_factory=list[int])


class PromptLogprob(WireModel):
    """One candidate for a prompt token; `rank` counts from 1 and is left out for tokens below those reported."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class CompletionChoice(WireModel):
    """One continuation; in a stream, the text that is new."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None
    token_ids: list[int] | None = None


class Completion(AnswerModel):
    """The answer to a completion request, and each event of its stream."""

    id: str
    object: Literal["text_completion"] | str = "text_completion"
    created: int = 0
    model: str = ""
    choices: list[CompletionChoice]
    usage: Usage | None = None


class GenerateRequest(SamplingFields):
    """One prompt. With a chat model it becomes one user turn of the chat template; `raw` sends it as it is."""

    prompt: str
    max_tokens: int | None = None
    raw: bool | None = None


class Generation(AnswerModel):
    """The answer to a generate call."""

    id: str
    object: Literal["generation"] | str = "generation"
    created: int = 0
    model: str = ""
    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    usage: Usage | None = None

    def __str__(self) -> str:
        return self.text


class GenerationChunk(WireModel):
    """One event of a streamed generate call: the text that is new since the last one."""

    id: str
    object: Literal["generation.chunk"] | str = "generation.chunk"
    created: int = 0
    model: str = ""
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    usage: Usage | None = None


class EmbeddingRequest(SamplingFields):
    """Texts, or token ids, to embed. Of the shared fields only `model`, `user`, `priority` and `deadline_s` count."""

    input: str | WireList[str] | WireList[int] | WireList[WireList[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "last"] | None = None
    normalize: bool | None = None


class Embedding(WireModel):
    """One vector: numbers, or the base64 of their little-endian float32 bytes."""

    object: Literal["embedding"] | str = "embedding"
    index: int = 0
    embedding: list[float] | str = Field(default_factory=list[float])


class EmbeddingList(AnswerModel):
    """The answer to an embedding request, in the order of its inputs."""

    object: Literal["list"] | str = "list"
    data: list[Embedding]
    model: str = ""
    usage: Usage | None = None
