"""Every operation of the gateway's HTTP interface. A new route is not finished before it stands here."""

from typing import Any, Final, Literal

from deepseek_client.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    EmbeddingList,
    EmbeddingRequest,
    GenerateRequest,
    Generation,
    GenerationChunk,
    Model,
    ModelList,
    WireModel,
)
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.openapi.operation import Operation
from deepseek_gateway.routes.admin import audit, balances, keys, limits, payloads, people, usage, words
from deepseek_gateway.routes.balance import OPERATION as BALANCE


class TokenizeRequest(WireModel):
    """Either `prompt` or `messages`; with `messages` all that a chat request may have counts too."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


class DetokenizeRequest(WireModel):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


class CountRequest(WireModel):
    """A conversation as /v1/messages takes it."""

    model: str | None = None
    messages: list[dict[str, Any]]


class CountAnswer(WireModel):
    """Its tokens."""

    input_tokens: int


class Health(WireModel):
    """The process answers."""

    status: str


class Ready(WireModel):
    """It may take traffic; `config` names the configuration in force, `faults` what is wrong all the same."""

    status: str
    config: str
    faults: list[str] | None = None


class Version(WireModel):
    """The gateway's version."""

    version: str


class MessagesRequest(WireModel):
    """A request as Anthropic's Messages API has it."""

    model: str | None = None
    max_tokens: int | None = None


class MessagesAnswer(WireModel):
    """An answer as Anthropic's Messages API has it, or an event of its stream."""

    type: str


class ResponsesRequest(WireModel):
    """A request as OpenAI's Responses API has it."""

    model: str | None = None
    input: str | list[Any]


class ResponsesAnswer(WireModel):
    """An answer as OpenAI's Responses API has it."""

    id: str
    object: str


class ResponsesEvent(WireModel):
    """An event of a stream, as OpenAI's Responses API has it."""

    type: str


class MessagesError(WireModel):
    """An error as Anthropic's Messages API has it."""

    type: Literal["error"]
    error: dict[str, Any]


GENERATING: Final = (400, 402, 404, 413, 422, 429, 502, 503)


def _prefixed(path: str) -> tuple[str, ...]:
    return (path, f"/beta{path}")


STATUS: Final = (
    Operation(
        method="GET", path="/health", aliases=("/v1/health",), summary="Whether the process answers", answer=(Health,)
    ),
    Operation(
        method="GET",
        path="/ready",
        aliases=("/v1/ready",),
        summary="Whether it may take traffic",
        answer=(Ready,),
        errors=(503,),
    ),
    Operation(
        method="GET", path="/version", aliases=("/v1/version",), summary="The gateway's version", answer=(Version,)
    ),
    Operation(
        method="GET",
        path="/metrics",
        aliases=("/v1/metrics",),
        summary="Prometheus metrics",
        media_type="text/plain; version=1.0.0; charset=utf-8",
    ),
    Operation(method="GET", path="/openapi.json", summary="This document", answer=(WireModel,)),
)
MODELS: Final = (
    Operation(
        method="GET",
        path="/v1/models",
        aliases=(*_prefixed("/models"), "/anthropic/models", "/anthropic/v1/models"),
        summary="The models that the key may use; with the header anthropic-version in Anthropic's shape",
        access=Scope.INFERENCE,
        answer=(ModelList,),
    ),
    Operation(
        method="GET",
        path="/v1/models/{id...}",
        aliases=(*_prefixed("/models/{id...}"), "/anthropic/models/{id...}", "/anthropic/v1/models/{id...}"),
        summary="One of them",
        access=Scope.INFERENCE,
        answer=(Model,),
        errors=(404,),
    ),
)
GENERATION: Final = (
    Operation(
        method="POST",
        path="/v1/generate",
        aliases=_prefixed("/generate"),
        summary="Follow one instruction",
        access=Scope.INFERENCE,
        body=GenerateRequest,
        answer=(Generation,),
        chunk=GenerationChunk,
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/chat/completions",
        aliases=_prefixed("/chat/completions"),
        summary="Continue a conversation",
        access=Scope.INFERENCE,
        body=ChatCompletionRequest,
        answer=(ChatCompletion,),
        chunk=ChatCompletionChunk,
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/completions",
        aliases=_prefixed("/completions"),
        summary="Continue, or fill in, a text",
        access=Scope.INFERENCE,
        body=CompletionRequest,
        answer=(Completion,),
        chunk=Completion,
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/embeddings",
        aliases=_prefixed("/embeddings"),
        summary="Vectors of texts, where the model's server has them",
        access=Scope.INFERENCE,
        body=EmbeddingRequest,
        answer=(EmbeddingList,),
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/tokenize",
        aliases=_prefixed("/tokenize"),
        summary="Token ids of a text or a conversation",
        access=Scope.INFERENCE,
        body=TokenizeRequest,
        answer=(WireModel,),
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/detokenize",
        aliases=_prefixed("/detokenize"),
        summary="The text of token ids",
        access=Scope.INFERENCE,
        body=DetokenizeRequest,
        answer=(WireModel,),
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/responses",
        aliases=("/responses",),
        summary="Continue a conversation, in the form of OpenAI's Responses API",
        access=Scope.INFERENCE,
        body=ResponsesRequest,
        answer=(ResponsesAnswer,),
        chunk=ResponsesEvent,
        errors=GENERATING,
    ),
    Operation(
        method="POST",
        path="/v1/messages",
        aliases=("/messages", "/anthropic/messages", "/anthropic/v1/messages"),
        summary="Continue a conversation, in the form of Anthropic's Messages API",
        access=Scope.INFERENCE,
        body=MessagesRequest,
        answer=(MessagesAnswer,),
        chunk=MessagesAnswer,
        errors=GENERATING,
        error=MessagesError,
    ),
    Operation(
        method="POST",
        path="/v1/messages/count_tokens",
        aliases=tuple(f"{prefix}/messages/count_tokens" for prefix in ("", "/anthropic", "/anthropic/v1")),
        summary="How many tokens a conversation has, in the form of Anthropic's API",
        access=Scope.INFERENCE,
        body=CountRequest,
        answer=(CountAnswer,),
        errors=GENERATING,
        error=MessagesError,
    ),
)
ADMIN: Final = (
    *keys.OPERATIONS,
    *people.OPERATIONS,
    *limits.OPERATIONS,
    *balances.OPERATIONS,
    *usage.OPERATIONS,
    *audit.OPERATIONS,
    *payloads.OPERATIONS,
    *words.OPERATIONS,
)
OPERATIONS: Final[tuple[Operation, ...]] = (*GENERATION, *MODELS, BALANCE, *STATUS, *ADMIN)
