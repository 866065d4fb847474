"""`POST /v1/completions`: plain text in, plain text out."""

from typing import Literal

from pydantic import Field

from deepseek_client.types.base import AnswerModel, WireList, WireModel
from deepseek_client.types.sampling import SamplingFields
from deepseek_client.types.usage import Usage


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
