"""`GET /v1/models`."""

from typing import Literal

from deepseek_client.types.base import AnswerModel, WireModel


class Model(WireModel):
    """A model that the server offers.

    `max_model_len` is its context in tokens where the server says it; `parent` the base model of a LoRA adapter.
    """

    id: str
    object: Literal["model"] | str = "model"
    created: int | None = None
    owned_by: str | None = None
    max_model_len: int | None = None
    parent: str | None = None


class ModelList(AnswerModel):
    """All models that the caller may use."""

    object: Literal["list"] | str = "list"
    data: list[Model]
