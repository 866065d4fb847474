"""Embeddings over HTTP, in OpenAI's shape: a request to a job of prompts without answers, vectors to its answer."""

import base64
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from deepseek_client.types import EmbeddingRequest
from deepseek_engine.messages import EmbedParams
from deepseek_engine.server.errors import ApiError, unsupported
from deepseek_engine.server.generation import ChoiceUpdate
from deepseek_engine.server.job import Job
from deepseek_engine.tokenizer import Tokenizer

_to_json: Final = msgspec.json.Encoder().encode


def embed_params(request: EmbeddingRequest, *, pooling: str, hidden_size: int) -> EmbedParams:
    """What the engine is asked for.

    Args:
        request: as it came.
        pooling: the server's own, where the request names none.
        hidden_size: numbers of the model's embeddings.

    Raises:
        ApiError: 400, it asks for a stream or for shorter vectors.
    """
    if request.stream:
        raise unsupported("stream", "stream: embeddings come all at once; leave it out")
    if request.dimensions not in (None, hidden_size):
        raise unsupported(
            "dimensions",
            f"dimensions={request.dimensions}: this model's embeddings have {hidden_size} numbers, and a part of them "
            "means nothing by itself",
        )
    chosen = request.pooling or pooling
    return EmbedParams(pooling="last" if chosen == "last" else "mean", normalise=request.normalize is not False)


class EmbeddingRenderer:
    """The whole answer; there is no stream of it."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:  # noqa: ARG002  every renderer gets both
        self._job = job

    def opening(self, usage: bytes) -> bytes:  # noqa: ARG002  Renderer's
        """Nothing."""
        return b""

    def chunk(self, update: ChoiceUpdate, usage: bytes, *, is_last: bool) -> bytes:  # noqa: ARG002  Renderer's
        """Nothing."""
        return b""

    def closing(self, usage: bytes) -> bytes:  # noqa: ARG002  Renderer's
        """Nothing."""
        return b""

    def answer(self, choices: Sequence[Sequence[ChoiceUpdate]], usage: bytes) -> bytes:
        """The vectors, in the inputs' order.

        Raises:
            ApiError: 503, the request was cancelled before all were there.
        """
        data: list[dict[str, object]] = []
        for index, updates in enumerate(choices):
            vector = next((update.embedding for update in updates if update.embedding is not None), None)
            if vector is None:
                raise ApiError(503, "the request was cancelled before its embeddings were computed")
            data.append({"object": "embedding", "index": index, "embedding": self._encode(vector)})
        head = _to_json({"object": "list", "data": data, "model": self._job.model})[:-1]
        return head + b',"usage":' + usage + b"}"

    def _encode(self, vector: bytes) -> str | tuple[float, ...]:
        if self._job.is_base64:
            return base64.b64encode(vector).decode("ascii")
        return struct.unpack(f"<{len(vector) // 4}f", vector)
