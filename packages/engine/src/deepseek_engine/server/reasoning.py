"""How much a request wants the model to think: four spellings of one wish."""

from dataclasses import dataclass
from typing import Any, Final

from deepseek_client.types import ChatCompletionRequest
from deepseek_engine.chat.conversation import EFFORTS, Effort
from deepseek_engine.messages import ThinkingMarkers
from deepseek_engine.sampling_params import MAX_COUNT
from deepseek_engine.server.errors import ApiError, unsupported
from deepseek_engine.text_parsers.markup import ReasoningMarkup
from deepseek_engine.text_parsers.parser import ReasoningStart
from deepseek_engine.thinking_markers import find_markers
from deepseek_engine.tokenizer import Tokenizer

_BUDGET: Final = "thinking.budget_tokens"
_KWARGS: Final = ("thinking", "enable_thinking", "reasoning_effort")


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """What the request says of thinking.

    Attributes:
        thinking: whether to think; None is the model's own way.
        effort: how much.
        budget: most tokens to think, where it thinks; None is no bound.
        param: the field that said so, for messages.
    """

    thinking: bool | None = None
    effort: Effort | None = None
    budget: int | None = None
    param: str = "thinking"

    @property
    def asks_to_think(self) -> bool:
        """Whether thinking was asked for."""
        return self.thinking is True or (self.effort is not None and self.thinking is None)


def read_thinking(request: ChatCompletionRequest) -> ThinkingWish:
    """The wish of `thinking`, `reasoning_effort` and `chat_template_kwargs`; the first of them that says it holds.

    Raises:
        ApiError: 400, `param` names the field at fault.
    """
    kwargs = _template_kwargs(request.chat_template_kwargs or {})
    thinking, param = _enabled(request.thinking), "thinking"
    if thinking is None:
        param = "chat_template_kwargs"
        thinking = kwargs.get("thinking", kwargs.get("enable_thinking"))
    effort = _effort(request.reasoning_effort, "reasoning_effort")
    if effort is None:
        effort = _effort(kwargs.get("reasoning_effort"), "chat_template_kwargs.reasoning_effort")
    if thinking is None:
        param = "reasoning_effort"
        thinking = None if effort is None else effort != "none"
    return ThinkingWish(thinking, None if effort == "none" else effort, _budget(request.thinking), param)


def budget_markers(tokenizer: Tokenizer, markup: ReasoningMarkup, start: ReasoningStart) -> ThinkingMarkers:
    """The tokens around a model's reasoning, for a budget to count between them.

    Raises:
        ApiError: 400, the tags are no tokens of their own.
    """
    found = find_markers(tokenizer.token_id, markup, is_open=start == "open")
    if found is None:
        raise unsupported(_BUDGET, f"{_BUDGET}: {markup.open} and {markup.close} are no tokens of this model's own")
    return found


def _enabled(given: dict[str, Any] | None) -> bool | None:
    if given is None:
        return None
    kind = given.get("type")
    if kind not in ("enabled", "disabled"):
        raise ApiError(400, 'thinking.type must be "enabled" or "disabled"', param="thinking.type")
    return kind == "enabled"


def _budget(given: dict[str, Any] | None) -> int | None:
    budget = (given or {}).get("budget_tokens")
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise ApiError(400, f"{_BUDGET} must be an integer", param=_BUDGET)
    if not 0 <= budget <= MAX_COUNT:
        raise ApiError(422, f"{_BUDGET}={budget} is out of range: it must be from 0 to {MAX_COUNT}", param=_BUDGET)
    return budget


def _effort(given: Any, param: str) -> Effort | None:
    if given is not None and given not in EFFORTS:
        raise ApiError(400, f"{param} must be one of {', '.join(EFFORTS)}", param=param)
    return given


def _template_kwargs(given: dict[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if key not in _KWARGS:
            raise unsupported(
                "chat_template_kwargs", f"chat_template_kwargs.{key[:50]}: only {', '.join(_KWARGS)} may be given"
            )
        if key != "reasoning_effort" and not isinstance(value, bool):
            raise ApiError(400, f"{key} must be true or false", param=f"chat_template_kwargs.{key}")
    return given
