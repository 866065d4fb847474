"""The routes that take plain text: `POST /v1/completions`, the one-shot `/v1/generate`, and `/v1/embeddings`."""

from typing import Literal

from pydantic import Field

from deepseek_client.types.base import AnswerModel, SamplingFields, Usage, WireList, WireModel


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
