"""Every operation of the HTTP interface: its bodies and the statuses that it may answer with."""

from dataclasses import dataclass
from typing import Final

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
from deepseek_engine.server.adapter_routes import LoadRequest, UnloadRequest
from deepseek_engine.server.tokenize_routes import DetokenizeRequest, TokenizeRequest


class Aborted(WireModel):
    """`aborted` is false where no request of this id runs."""

    id: str
    aborted: bool


class Tokenized(WireModel):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(WireModel):
    """The text of token ids."""

    prompt: str


class Health(WireModel):
    """The process answers."""

    status: str


class Readiness(Health):
    """The server takes requests for this model."""

    model: str


class Version(WireModel):
    """The engine's version."""

    version: str


_GENERATING: Final = (400, 404, 413, 422, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        path: without a prefix; in braces what the caller fills in.
        summary: a line for a reader.
        request: the JSON body; None if there is none.
        answer: the JSON of a 200; None if it is text.
        chunk: the JSON of an event, where `"stream": true` asks for events.
        errors: statuses beside 200; 401 is added where the server has a key.
    """

    method: str
    path: str
    summary: str
    request: type[WireModel] | None = None
    answer: type[WireModel] | None = None
    chunk: type[WireModel] | None = None
    errors: tuple[int, ...] = ()


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/chat/completions",
        summary="Continue a conversation",
        request=ChatCompletionRequest,
        answer=ChatCompletion,
        chunk=ChatCompletionChunk,
        errors=_GENERATING,
    ),
    Operation(
        method="POST",
        path="/generate",
        summary="Follow one instruction",
        request=GenerateRequest,
        answer=Generation,
        chunk=GenerationChunk,
        errors=_GENERATING,
    ),
    Operation(
        method="POST",
        path="/completions",
        summary="Continue, fill in or score texts",
        request=CompletionRequest,
        answer=Completion,
        chunk=Completion,
        errors=_GENERATING,
    ),
    Operation(
        method="POST",
        path="/embeddings",
        summary="Embed texts",
        request=EmbeddingRequest,
        answer=EmbeddingList,
        errors=_GENERATING,
    ),
    Operation(
        method="POST",
        path="/requests/{request_id}/abort",
        summary="End the running requests with this `x-request-id`",
        answer=Aborted,
    ),
    Operation(method="GET", path="/models", summary="The served model and its adapters", answer=ModelList),
    Operation(method="GET", path="/models/{model_id}", summary="One of them", answer=Model, errors=(404,)),
    Operation(
        method="POST",
        path="/load_lora_adapter",
        summary="Load an adapter of the server's adapter folder",
        request=LoadRequest,
        errors=(400, 403, 413, 503),
    ),
    Operation(
        method="POST",
        path="/unload_lora_adapter",
        summary="Forget an adapter",
        request=UnloadRequest,
        errors=(400, 403, 404, 413, 503),
    ),
    Operation(
        method="POST",
        path="/tokenize",
        summary="Token ids of a text or a chat",
        request=TokenizeRequest,
        answer=Tokenized,
        errors=_GENERATING,
    ),
    Operation(
        method="POST",
        path="/detokenize",
        summary="The text of token ids",
        request=DetokenizeRequest,
        answer=Detokenized,
        errors=(400, 404, 413, 422),
    ),
    Operation(method="GET", path="/health", summary="Whether the process answers", answer=Health),
    Operation(method="GET", path="/ready", summary="Whether it may take traffic", answer=Readiness, errors=(503,)),
    Operation(method="GET", path="/metrics", summary="Prometheus metrics"),
    Operation(method="GET", path="/version", summary="The engine's version", answer=Version),
    Operation(method="GET", path="/openapi.json", summary="This document", answer=WireModel),
)
