"""`POST /v1/generate`: the one-shot instruct call."""

from typing import Literal

from deepseek_client.types.base import AnswerModel, WireModel
from deepseek_client.types.sampling import SamplingFields
from deepseek_client.types.usage import Usage


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
