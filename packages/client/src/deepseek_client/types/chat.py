"""`POST /v1/chat/completions`."""

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
