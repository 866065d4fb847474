"""`POST /v1/embeddings`: texts in, vectors out."""

from typing import Literal

from pydantic import Field

from deepseek_client.types.base import AnswerModel, WireList, WireModel
from deepseek_client.types.sampling import SamplingFields
from deepseek_client.types.usage import Usage


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
