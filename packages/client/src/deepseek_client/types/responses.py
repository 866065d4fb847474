"""`POST /v1/responses`: answers as lists of items. Stateless: each request carries the whole conversation."""

from typing import Any, Literal

from pydantic import Field

from deepseek_client.types.base import AnswerModel, CompletionTokensDetails, PromptTokensDetails, Usage, WireModel


class ResponsePart(WireModel):
    """A part of an item: `output_text` or `reasoning_text`, and what else servers send."""

    type: str
    text: str | None = None


class ResponseItem(WireModel):
    """One item of an answer: `message`, `reasoning`, `function_call`, `web_search_call`.

    The fields of a function call are `name`, `call_id` and `arguments` (JSON text).
    """

    type: str
    id: str | None = None
    status: str | None = None
    role: str | None = None
    content: list[ResponsePart] | None = None
    name: str | None = None
    call_id: str | None = None
    arguments: str | None = None

    @property
    def text(self) -> str:
        """The text of its parts."""
        return "".join(part.text or "" for part in self.content or ())


class InputTokensDetails(WireModel):
    """How the input divides."""

    cached_tokens: int = 0


class OutputTokensDetails(WireModel):
    """How the output divides."""

    reasoning_tokens: int = 0


class ResponseUsage(WireModel):
    """Tokens processed, under the names of this route."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: InputTokensDetails = Field(default_factory=InputTokensDetails)
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)

    def to_usage(self) -> Usage:
        """The same counts under the names of every other route."""
        cached = self.input_tokens_details.cached_tokens
        return Usage(
            prompt_tokens=self.input_tokens,
            completion_tokens=self.output_tokens,
            total_tokens=self.total_tokens or self.input_tokens + self.output_tokens,
            prompt_cache_hit_tokens=cached,
            prompt_cache_miss_tokens=self.input_tokens - cached,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=self.output_tokens_details.reasoning_tokens
            ),
        )


class IncompleteDetails(WireModel):
    """Why an answer is not whole: `max_output_tokens`, `content_filter`."""

    reason: str | None = None


class Response(AnswerModel):
    """The answer. `status` is completed or incomplete; a failed one is raised."""

    id: str
    object: Literal["response"] | str = "response"
    created_at: float = 0
    model: str = ""
    status: str | None = None
    output: list[ResponseItem] = Field(default_factory=list[ResponseItem])
    usage: ResponseUsage | None = None
    error: dict[str, Any] | None = None
    incomplete_details: IncompleteDetails | None = None

    @property
    def output_text(self) -> str:
        """The text of its messages."""
        return "".join(item.text for item in self.output if item.type == "message")

    @property
    def reasoning_text(self) -> str:
        """The reasoning before it."""
        return "".join(item.text for item in self.output if item.type == "reasoning")

    @property
    def function_calls(self) -> list[ResponseItem]:
        """The functions that the model asks to be called."""
        return [item for item in self.output if item.type == "function_call"]


class ResponseEvent(WireModel):
    """One event of a streamed answer; those with a class of their own below are told apart by `isinstance`."""

    type: str
    sequence_number: int = 0


class _Delta(ResponseEvent):
    item_id: str | None = None
    output_index: int = 0
    delta: str = ""


class ResponseTextDelta(_Delta):
    """`response.output_text.delta`: text that is new."""

    content_index: int = 0


class ResponseReasoningDelta(_Delta):
    """`response.reasoning_text.delta`: reasoning that is new."""

    content_index: int = 0


class ResponseArgumentsDelta(_Delta):
    """`response.function_call_arguments.delta`: a piece of a call's arguments."""


class ResponseItemEvent(ResponseEvent):
    """`response.output_item.added` and `.done`: an item begins or is whole."""

    output_index: int = 0
    item: ResponseItem


class ResponseLifecycleEvent(ResponseEvent):
    """`response.created`, `.in_progress`, and the last of a stream: `.completed` or `.incomplete`."""

    response: Response


_CLASSES: dict[str, type[ResponseEvent]] = {
    "response.output_text.delta": ResponseTextDelta,
    "response.reasoning_text.delta": ResponseReasoningDelta,
    "response.function_call_arguments.delta": ResponseArgumentsDelta,
    "response.output_item.added": ResponseItemEvent,
    "response.output_item.done": ResponseItemEvent,
    "response.created": ResponseLifecycleEvent,
    "response.in_progress": ResponseLifecycleEvent,
    "response.completed": ResponseLifecycleEvent,
    "response.incomplete": ResponseLifecycleEvent,
}


def response_event(fields: dict[str, Any]) -> ResponseEvent:
    """The event of its own class, or a plain ResponseEvent where the type is not known.

    Raises:
        pydantic.ValidationError: it is no event.
    """
    return _CLASSES.get(str(fields.get("type")), ResponseEvent).model_validate(fields)
