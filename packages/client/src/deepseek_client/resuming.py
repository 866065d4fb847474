"""How one broken stream goes on, where its caller wants that (`resume=True`). Flows and decisions; no I/O.

Where events are numbered (our gateway), the server is asked for those after the last one that came: nothing is lost,
nothing comes twice, and it is billed once. Elsewhere, and where the gateway has lost the stream, the server is asked to
go on from the text that had come: an answer that begins with a text of the caller's is one call in three dialects.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from deepseek_client.effects import Flow, Opened, Sleep
from deepseek_client.errors import APIStatusError, DeepSeekError, IdleTimeout, StreamTruncatedError
from deepseek_client.exchange import Attempts, Exchange
from deepseek_client.pacing import is_retryable
from deepseek_client.readings import Reading, SoFar
from deepseek_client.request import Call, chat_path
from deepseek_client.settings import Settings
from deepseek_client.sse import ServerSentEvent
from deepseek_client.types.base import Seam
from deepseek_client.types.chat import ChatCompletion, ChatMessage


@dataclass(frozen=True, slots=True)
class Continuation:
    """How the answer begins: its text, and the reasoning that led to it, if there was any."""

    text: str
    reasoning: str | None = None

    def to_message(self) -> dict[str, Any]:
        """The turn that the server is to go on with."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        return message if self.reasoning is None else {**message, "reasoning_content": self.reasoning}

    def joined(self, completion: ChatCompletion) -> ChatCompletion:
        """The completion with the beginning in front of each of its answers."""
        for choice in completion.choices:
            message = choice.message
            message.content = self.text + _text(message)
            if self.reasoning is not None:
                message.reasoning_content = self.reasoning + (message.reasoning_content or "")
        return completion


def continuation_of(settings: Settings, messages: Iterable[Any], continuation: Continuation) -> dict[str, Any]:
    """The fields of a chat that goes on with the last message, in the words that the server knows.

    DeepSeek and our servers read `prefix`, vLLM and SGLang `continue_final_message`; each ignores the other's, so that
    an unknown server is sent both.
    """
    fields: dict[str, Any] = {}
    message = continuation.to_message()
    if settings.profile != "openai":
        message["prefix"] = True
    if settings.profile in ("auto", "openai") and not settings.is_deepseek:
        fields = {"continue_final_message": True, "add_generation_prompt": False}
    return {"messages": [*messages, message], **fields}


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text or "" for part in message.content or ())


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


_NOT_HERE = frozenset({400, 404, 405, 409, 410, 422, 501})
"""Refusals of one way to go on, after which another one may work."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """An event's id, as our gateway gives it: a stream, and the event's number in it."""

    stream: str
    number: int

    @property
    def text(self) -> str:
        return f"{self.stream}:{self.number}"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A stream that goes on."""

    opened: Opened
    how: Literal["replay", "prefix"]


class Resumption:
    """One stream's way to go on after a break.

    Args:
        exchange: the client's.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.seams: tuple[Seam, ...] = ()
        self._exchange = exchange
        self._sent: Sent | None = None
        self._mark: _Mark | None = None
        self._awaited: _Mark | None = None
        self._is_numbered = False

    @property
    def can_replay(self) -> bool:
        """Whether the server has numbered its events."""
        return self._mark is not None

    def begin(self, sent: Sent) -> None:
        """A stream has begun, from its first event."""
        self._sent, self._mark, self._awaited = sent, None, None

    def is_new(self, event: ServerSentEvent) -> bool:
        """Whether an event is to be read; one that had come before the break is not.

        Raises:
            StreamTruncatedError: the server did not go on where it was asked to.
        """
        mark, last = _mark_of(event.id), self._awaited
        if last is not None:
            if mark is not None and mark.stream == last.stream and mark.number <= last.number:
                return False
            self._awaited = None
            if mark is None or mark.stream != last.stream or mark.number != last.number + 1:
                self._mark = None
                raise StreamTruncatedError(f"the server was asked for what follows event {last.text}, and sent another")
        self._mark = mark
        self._is_numbered = self._is_numbered or mark is not None
        return True

    def go_on(self, error: DeepSeekError, attempts: Attempts, reading: Reading[Any, Any]) -> Flow[Resumed | None]:
        """Have the stream go on; None if it cannot, which the error then says in a note."""
        if not _is_break(error):
            return None
        if not self._has_way(error, reading):
            error.add_note(f"not resumed: {self._continued(reading)}")
            return None
        delay = attempts.next_delay_s(error, is_sure=True)
        if delay is None:
            error.add_note("not resumed: no retry is left, or no time")
            return None
        yield Sleep(delay)
        failure: DeepSeekError | str = "no way is left"
        for how, sent in self._ways(error, reading):
            if isinstance(sent, str):
                failure = sent
                break
            try:
                opened = yield from self._exchange.open(sent.path, sent.call, attempts)
            except APIStatusError as refusal:
                failure = refusal
                if refusal.status_code not in _NOT_HERE:
                    break
                self._mark = None
            except DeepSeekError as failed:
                failure = failed
                break
            else:
                self._joined(how, error, reading)
                return Resumed(opened, how)
        error.add_note(f"not resumed: {failure}")
        return None

    def _joined(self, how: Literal["replay", "prefix"], error: DeepSeekError, reading: Reading[Any, Any]) -> None:
        so_far = reading.so_far()
        self.seams += (Seam(how, len(so_far.text) if so_far is not None else 0, error.request_id),)
        self._awaited = self._mark if how == "replay" else None
        if how == "prefix":
            self._mark = None
            reading.begin_part()

    def _has_way(self, error: DeepSeekError, reading: Reading[Any, Any]) -> bool:
        return any(isinstance(sent, Sent) for _, sent in self._ways(error, reading))

    def _ways(
        self, error: DeepSeekError, reading: Reading[Any, Any]
    ) -> Iterator[tuple[Literal["replay", "prefix"], Sent | str]]:
        """The requests that may bring the rest, the better first. Nothing follows where the server itself ended it."""
        if self._mark is not None and self._sent is not None and not isinstance(error, APIStatusError):
            yield "replay", replayed(self._sent, self._mark.text)
        if not reading.is_complete:
            yield "prefix", self._continued(reading)

    def _continued(self, reading: Reading[Any, Any]) -> Sent | str:
        assert self._sent is not None, "a stream that broke had begun"
        return continued(self._exchange.settings, self._sent, reading.so_far(), is_ours=self._is_numbered)


def _is_break(error: DeepSeekError) -> bool:
    """Whether an answer that ended so may go on: a lost or silent connection, or a server that gave up."""
    if isinstance(error, APIStatusError):
        return is_retryable(error)
    return isinstance(error, StreamTruncatedError | IdleTimeout)


def _mark_of(text: str | None) -> _Mark | None:
    stream, _, number = (text or "").rpartition(":")
    return _Mark(stream, int(number)) if stream and number.isascii() and number.isdigit() else None
