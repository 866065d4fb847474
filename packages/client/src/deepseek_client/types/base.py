"""What all routes share: WireModel, the base of every request and response; sampling fields, token counts, errors."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, PrivateAttr

Item = TypeVar("Item")


class _FirstErrorEnds(FailFast):
    """FailFast that can stand in a union: pydantic's own has no hash."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


WireList = Annotated[list[Item], _FirstErrorEnds()]
"""A list of a request: checking it ends at the first wrong item. A report on each of a million takes seconds."""


class WireModel(BaseModel):
    """A JSON object of the HTTP contract.

    Unknown fields survive a round trip (DeepSeek adds fields without notice), and a field that was never set stays
    off the wire, so that the server's own default applies.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=(), defer_build=True, ser_json_inf_nan="null")

    def to_wire(self) -> dict[str, Any]:
        """The JSON object to send: set fields and unknown fields, nothing else."""
        return self.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a stream broke and went on.

    Attributes:
        how: `replay`, the server sent what was missing; `prefix`, it went on from the text that had come.
        position: how many characters of the text had come.
        request_id: of the request that broke.
    """

    how: Literal["replay", "prefix"]
    position: int
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer came about. Two answers that differ only in these are equal, but for the id.

    Attributes:
        request_id: the id under which the server's logs have the request.
        retries_taken: how often the request had been sent before.
        elapsed_s: from the call to the answer, retries and waits included; None where nothing was sent.
        seams: where a stream broke and went on.
    """

    request_id: str | None = None
    retries_taken: int = field(default=0, compare=False)
    elapsed_s: float | None = field(default=None, compare=False)
    seams: tuple[Seam, ...] = field(default=(), compare=False)


class AnswerModel(WireModel):
    """A whole answer. Beside the body it knows how it came about; none of that is ever on the wire."""

    _origin: Origin = PrivateAttr(default=Origin())
    _cost: Decimal | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The response's `x-request-id` (or a server's own name for it)."""
        return self._origin.request_id

    @property
    def retries_taken(self) -> int:
        """How often the request had been sent before it succeeded."""
        return self._origin.retries_taken

    @property
    def elapsed(self) -> float | None:
        """Seconds from the call to the answer, retries and waits included; None for what no call gave."""
        return self._origin.elapsed_s

    @property
    def seams(self) -> tuple[Seam, ...]:
        """Where the stream of this answer broke and went on, with `resume=True`."""
        return self._origin.seams

    @property
    def cost(self) -> Decimal | None:
        """What its tokens cost, by the client's price table; None where that is not known."""
        return self._cost

    def with_cost(self, cost: Decimal | None) -> None:
        """Note the price."""
        self._cost = cost

    def with_origin(self, origin: Origin) -> None:
        """Note how it came about."""
        self._origin = origin

    def with_origin_of(self, answer: "AnswerModel") -> None:
        """Note what is known of another answer, of which this one is made."""
        self._origin, self._cost = answer._origin, answer._cost  # noqa: SLF001  its own class


class StreamOptions(WireModel):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(WireModel):
    """Sampling and streaming fields of generate, chat and completions. Servers state the limits and the defaults."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | WireList[str] | None = None
    stop_token_ids: WireList[int] | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int | None = None
    """Our engine's and vLLM's: lower goes sooner, 0 is usual."""
    deadline_s: float | None = None
    """Our engine's: seconds after which the answer ends with what it has, finish reason `abort`."""


class CompletionTokensDetails(WireModel):
    """How the generated tokens divide."""

    reasoning_tokens: int = 0


class PromptTokensDetails(WireModel):
    """How the prompt's tokens divide (OpenAI's spelling of the cache hit)."""

    cached_tokens: int = 0


class Usage(WireModel):
    """Tokens processed for one request.

    `prompt_tokens` is cache hits plus misses; `completion_tokens` includes reasoning.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_cache_hit_tokens: int = 0
    prompt_cache_miss_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    def plus(self, other: "Usage") -> "Usage":
        """Of both together: two requests for one answer."""
        parts = (self, other)
        prompt = [part.prompt_tokens_details for part in parts if part.prompt_tokens_details is not None]
        output = [part.completion_tokens_details for part in parts if part.completion_tokens_details is not None]
        cached = PromptTokensDetails(cached_tokens=sum(each.cached_tokens for each in prompt))
        reasoning = CompletionTokensDetails(reasoning_tokens=sum(each.reasoning_tokens for each in output))
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            prompt_cache_hit_tokens=self.prompt_cache_hit_tokens + other.prompt_cache_hit_tokens,
            prompt_cache_miss_tokens=self.prompt_cache_miss_tokens + other.prompt_cache_miss_tokens,
            prompt_tokens_details=cached if prompt else None,
            completion_tokens_details=reasoning if output else None,
        )


class ErrorDetail(WireModel):
    """What went wrong, for a person (`message`) and for a program (`type`, `param`, `code`)."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class ErrorBody(WireModel):
    """The whole JSON body of an error."""

    error: ErrorDetail


TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_balance_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large_error",
    422: "invalid_parameter_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "internal_server_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The `type` our servers put beside each status; statuses are DeepSeek's (400 format, 422 parameter, 402 balance)."""


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
) -> ErrorBody:
    """The body for a status; its `type` is the status's own unless `kind` is given."""
    kind = kind or TYPE_OF_STATUS.get(status, "invalid_request_error" if status < 500 else "internal_server_error")
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))
