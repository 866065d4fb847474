"""A request for the rest of an answer that broke off: the same one, with what had come as its beginning. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from deepseek_client.params import Call
from deepseek_client.prefixes import Continuation, continuation_of
from deepseek_client.readings import SoFar
from deepseek_client.routes import chat_path
from deepseek_client.settings import Settings

_LIMITS = ("max_tokens", "max_completion_tokens")
_FORMATS = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
    "regex",
    "ebnf",
)
"""What holds an answer to a form, beside `response_format`: a server would hold the rest alone to it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request for a stream, as it was sent."""

    path: str
    call: Call


def replayed(sent: Sent, last_event_id: str) -> Sent:
    """The request for the events after one, at a server that has numbered and kept them."""
    return replace(sent, call=replace(sent.call, headers={**sent.call.headers, "last-event-id": last_event_id}))


def continued(settings: Settings, sent: Sent, so_far: SoFar | None, *, is_ours: bool) -> Sent | str:
    """The request for the rest of an answer.

    Args:
        settings: the client's.
        sent: the request whose answer broke off.
        so_far: what had come of it; None for an answer that is no plain text.
        is_ours: the server is known to be our gateway.

    Returns:
        the request, or why there is none.
    """
    obstacle = _obstacle(settings, sent, so_far, is_ours=is_ours)
    if obstacle is not None:
        return obstacle
    assert so_far is not None, "an obstacle otherwise"
    if not so_far.text:
        return sent  # nothing was said yet
    body = dict(sent.call.body)
    for name in _LIMITS:
        if isinstance(body.get(name), int):
            body[name] -= so_far.num_tokens
            if body[name] < 1:
                return f"{name} may be used up"
    path = sent.path
    if "messages" in body:
        beginning = Continuation(so_far.text, so_far.reasoning or None)
        body |= continuation_of(settings, body["messages"], beginning)
        path = chat_path(settings, body)
    else:
        body["prompt"] += so_far.text
    # Another body is another request: a key of the caller's own belongs to the first one.
    headers = {name: value for name, value in sent.call.headers.items() if name.lower() != "idempotency-key"}
    return Sent(path, replace(sent.call, body=body, headers=headers))


def _obstacle(settings: Settings, sent: Sent, so_far: SoFar | None, *, is_ours: bool) -> str | None:
    body = sent.call.body
    if so_far is None or not ("messages" in body or sent.path.endswith("completions")):
        return f"no server continues an answer of {sent.path} from its text"
    if (body.get("n") or 1) != 1:
        return "several answers were asked for"
    if so_far.has_calls:
        return "a tool call had begun"
    if _has_format(body):
        return "the answer is held to a format, which its rest alone would not fit"
    if "messages" in body:
        return _obstacle_of_chat(settings, body, so_far, is_ours=is_ours)
    if not isinstance(body.get("prompt"), str):
        return "only a prompt that is one text can be continued"
    return "echo and logprobs count from the prompt" if body.get("echo") or body.get("logprobs") is not None else None


def _obstacle_of_chat(settings: Settings, body: Mapping[str, Any], so_far: SoFar, *, is_ours: bool) -> str | None:
    if _role_of(body["messages"][-1] if body["messages"] else None) == "assistant":
        return "the conversation ends with a turn of the assistant's already"
    if so_far.reasoning and not so_far.text:
        return "it broke within the reasoning"
    takes_reasoning = settings.is_deepseek or settings.profile == "gateway" or is_ours
    if so_far.reasoning and not takes_reasoning:
        return "the server may not take reasoning back"
    return None


def _has_format(body: Mapping[str, Any]) -> bool:
    wish = body.get("response_format")
    kind: object = cast("Mapping[str, Any]", wish).get("type") if isinstance(wish, Mapping) else wish
    return kind not in (None, "text") or any(body.get(name) is not None for name in _FORMATS)


def _role_of(message: object) -> object:
    if isinstance(message, Mapping):
        return cast("Mapping[str, Any]", message).get("role")
    return getattr(message, "role", None)
