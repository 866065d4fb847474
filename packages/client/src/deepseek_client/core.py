"""The calls of the API, as flows: which route, which model, what the answer is. No I/O; sync and async share it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, cast
from urllib.parse import quote

from deepseek_client.effects import Flow
from deepseek_client.errors import APIStatusError, ContextLengthError, DeepSeekError
from deepseek_client.events import ChatEvent
from deepseek_client.exchange import Attempts, Exchange
from deepseek_client.prices import DEEPSEEK_PRICES, Entry, Ledger, PriceTable, entry_of
from deepseek_client.readings import (
    AnswerT,
    ChatReading,
    CompletionReading,
    EventReading,
    GenerationReading,
    ItemT,
    Reading,
    TextReading,
    as_generation,
)
from deepseek_client.request import (
    Call,
    ChatParams,
    CompletionParams,
    GenerateParams,
    chat_path,
    completions_path,
    make_call,
)
from deepseek_client.resuming import Continuation, Sent, continuation_of
from deepseek_client.stream_core import Connected, StreamCore
from deepseek_client.types.base import AnswerModel, WireModel
from deepseek_client.types.chat import ChatCompletion, ChatCompletionChunk, Completion, Generation
from deepseek_client.types.services import Model, ModelList

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=WireModel)

ChatStreamCore = StreamCore[ChatCompletionChunk, ChatCompletion]
ChatEventCore = StreamCore[ChatEvent, ChatCompletion]
CompletionStreamCore = StreamCore[Completion, Completion]
TextStreamCore = StreamCore[str, Generation]


@dataclass(slots=True)
class Knowledge:
    """What a client has found out about its server; shared by its `with_options` copies.

    Attributes:
        lacks_generate: `/v1/generate` answered that it does not exist.
        model: the first model of the server's list, asked for because the server requires one.
        structured: how the server takes a type that an answer is to have; None while nobody asked.
    """

    lacks_generate: bool = False
    model: str | None = None
    structured: Literal["json_schema", "json_object"] | None = None


@dataclass(frozen=True, slots=True)
class _TextRoute:
    """One way to get a text for a prompt."""

    path: str
    answer: type[Generation] | type[ChatCompletion] | type[Completion]
    make_reading: Callable[[], Reading[str, Generation]]


_NATIVE = _TextRoute("generate", Generation, GenerationReading)
_CHAT = _TextRoute("chat/completions", ChatCompletion, lambda: TextReading(ChatReading()))
_RAW = _TextRoute("completions", Completion, lambda: TextReading(CompletionReading()))


class Core:
    """Every call of the API, for one server."""

    def __init__(self, exchange: Exchange, knowledge: Knowledge | None = None, ledger: Ledger | None = None) -> None:
        self.exchange = exchange
        self.settings = exchange.settings
        self.knowledge = knowledge or Knowledge()
        self.ledger = ledger or Ledger()
        self._prices: PriceTable | None = self.settings.prices or (
            DEEPSEEK_PRICES if self.settings.is_deepseek else None
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a part of a client cannot be copied or pickled: pickle the client itself")

    def generate(self, prompt: str, max_tokens: int, params: Mapping[str, Any]) -> Flow[Generation]:
        """A text for a prompt: `/v1/generate`, or chat on a server that has no such route."""
        call = self.call(GenerateParams, params, prompt=prompt, max_tokens=max_tokens)
        return self._generate(call, self._fetch_text)

    def open_text(self, prompt: str, max_tokens: int, params: Mapping[str, Any]) -> TextStreamCore:
        """A stream of the text for a prompt; nothing is sent before it is started or filled."""
        call = self.call(GenerateParams, params, prompt=prompt, max_tokens=max_tokens, stream=True)
        return StreamCore(
            lambda attempts: self._generate(call, partial(self._open_text, attempts)),
            self.exchange,
            call.timeout,
            GenerationReading(),
            self.enter,
            resume=call.resume,
        )

    def chat(self, messages: list[Any], params: Mapping[str, Any]) -> Flow[ChatCompletion]:
        """An answer to a conversation."""
        call = self.call(ChatParams, params, messages=messages)
        path = chat_path(self.settings, call.body)
        return self.with_model(call, lambda call: self.post(path, call, ChatCompletion))

    def open_chat(self, messages: list[Any], params: Mapping[str, Any]) -> ChatStreamCore:
        """A stream of the answer to a conversation."""
        call = self.call(ChatParams, params, messages=messages, stream=True)
        choices = int(call.body.get("n") or 1)
        return self.stream(chat_path(self.settings, call.body), call, lambda: ChatReading(choices))

    def continue_prefix(
        self, messages: list[Any], prefix: str, reasoning: str | None, params: Mapping[str, Any]
    ) -> Flow[ChatCompletion]:
        """An answer that begins with a text of the caller's, which stands in front of it."""
        continuation = Continuation(prefix, reasoning)
        fields = continuation_of(self.settings, messages, continuation)
        call = self.call(ChatParams, params, **fields)
        completion = yield from self.with_model(
            call, lambda call: self.post(chat_path(self.settings, call.body), call, ChatCompletion)
        )
        return continuation.joined(completion)

    def open_events(self, messages: list[Any], params: Mapping[str, Any], *, keep_alives: bool) -> ChatEventCore:
        """A stream of the events of the answer to a conversation."""
        params = {"stream_options": {"include_usage": True}, **params}
        call = self.call(ChatParams, params, messages=messages, stream=True)
        choices = int(call.body.get("n") or 1)
        path = chat_path(self.settings, call.body)
        return self.stream(path, call, lambda: EventReading(choices, keep_alives=keep_alives))

    def complete(self, prompt: object, params: Mapping[str, Any]) -> Flow[Completion]:
        """A continuation of a text."""
        call = self.call(CompletionParams, params, prompt=prompt)
        return self.with_model(call, lambda call: self.post(completions_path(self.settings), call, Completion))

    def open_completion(self, prompt: object, params: Mapping[str, Any]) -> CompletionStreamCore:
        """A stream of the continuation of a text."""
        call = self.call(CompletionParams, params, prompt=prompt, stream=True)
        choices = int(call.body.get("n") or 1) * _num_prompts(prompt)
        return self.stream(completions_path(self.settings), call, lambda: CompletionReading(choices))

    def models(self) -> Flow[ModelList]:
        """The models that the key may use."""
        return self.get("models", ModelList)

    def model(self, model_id: str) -> Flow[Model]:
        """One model."""
        return self.get(f"models/{quote(model_id, safe='/')}", Model)

    def call(self, schema: type, params: Mapping[str, Any], **required: object) -> Call:
        """A call of this client's; see `make_call`."""
        return make_call(self.settings, schema, required, params)

    def get(self, path: str, model: type[ModelT], call: Call | None = None, *, method: str = "GET") -> Flow[ModelT]:
        """Ask for something that is there."""
        reply = yield from self.exchange.fetch(method, path, call or Call({}, self.settings.timeout))
        return self.exchange.parse(reply, model)

    def post(self, path: str, call: Call, model: type[ModelT]) -> Flow[ModelT]:
        """Send a call and read its answer."""
        reply = yield from self.exchange.fetch("POST", path, call)
        answer = self.exchange.parse(reply, model)
        entry = entry_of(answer, call.body.get("model"))
        if entry is not None and isinstance(answer, AnswerModel):
            answer.with_cost(self.enter(entry))
        return answer

    def enter(self, entry: Entry) -> Decimal | None:
        """Count an answer; its price, None where it is not known."""
        return self.ledger.enter(entry, self._prices)

    def stream(
        self, path: str, call: Call, make_reading: Callable[[], Reading[ItemT, AnswerT]]
    ) -> StreamCore[ItemT, AnswerT]:
        """A stream of the answer to a call; nothing is sent before it is started or filled."""

        def connect(attempts: Attempts) -> Flow[Connected[ItemT, AnswerT]]:
            return self.with_model(call, lambda call: self._open(path, call, make_reading, attempts))

        return StreamCore(connect, self.exchange, call.timeout, make_reading(), self.enter, resume=call.resume)

    def _open(
        self, path: str, call: Call, make_reading: Callable[[], Reading[ItemT, AnswerT]], attempts: Attempts
    ) -> Flow[Connected[ItemT, AnswerT]]:
        opened = yield from self.exchange.open(path, call, attempts)
        return Connected(opened, make_reading(), call.body.get("model"), Sent(path, call))

    def _generate(self, call: Call, send: Callable[[_TextRoute, Call], Flow[T]]) -> Flow[T]:
        """Take the route that the server has; ask once, and remember."""
        settings = self.settings
        if settings.profile != "openai" and not settings.is_deepseek and not self.knowledge.lacks_generate:
            try:
                return (yield from self.with_model(call, partial(send, _NATIVE)))
            except APIStatusError as error:
                if settings.profile == "gateway" or not _means_no_such_route(error):
                    raise
            self.knowledge.lacks_generate = True
        call = _for_openai(call, is_deepseek=settings.is_deepseek)
        if "messages" in call.body:
            return (yield from self.with_model(call, partial(send, _CHAT)))
        return (yield from self.with_model(call, partial(send, replace(_RAW, path=completions_path(self.settings)))))

    def _fetch_text(self, route: _TextRoute, call: Call) -> Flow[Generation]:
        answer = yield from self.post(route.path, call, route.answer)
        if isinstance(answer, Generation):
            return answer
        generation = as_generation(answer)
        generation.with_origin_of(answer)
        return generation

    def _open_text(self, attempts: Attempts, route: _TextRoute, call: Call) -> Flow[Connected[str, Generation]]:
        return self._open(route.path, call, route.make_reading, attempts)

    def with_model(self, call: Call, send: Callable[[Call], Flow[T]]) -> Flow[T]:
        """Name a model if the caller or the server wants one named.

        Our engine and gateway have a default. A server that requires a model says so; it is then asked for its list,
        once, and the first model of it is used.
        """
        model = call.body.get("model") or self.settings.default_model or self.knowledge.model
        if model is not None:
            return (yield from send(call.with_body(model=model)))
        try:
            return (yield from send(call))
        except APIStatusError as error:
            if not _asks_for_a_model(error):
                raise
            try:
                models = yield from self.get("models", ModelList, Call({}, self.settings.timeout, is_aside=True))
            except DeepSeekError:
                raise error from None
            if not models.data:
                raise
        self.knowledge.model = models.data[0].id
        return (yield from send(call.with_body(model=self.knowledge.model)))


def _for_openai(call: Call, *, is_deepseek: bool) -> Call:
    """A generate call as a chat (one user turn), or, with `raw`, as a completion."""
    body = {name: value for name, value in call.body.items() if name not in ("prompt", "raw")}
    if call.body.get("raw"):
        body["prompt"] = call.body["prompt"]
    else:
        body["messages"] = [{"role": "user", "content": call.body["prompt"]}]
        if is_deepseek and "reasoning_effort" not in body:
            body.setdefault("thinking", {"type": "disabled"})  # on by default there, it would eat max_tokens
    if body.get("stream"):
        body.setdefault("stream_options", {"include_usage": True})
    return replace(call, body=body)


def _means_no_such_route(error: APIStatusError) -> bool:
    return error.status_code in (404, 405) and error.code != "model_not_found"


def _asks_for_a_model(error: APIStatusError) -> bool:
    if error.status_code not in (400, 404, 422) or isinstance(error, ContextLengthError):
        return False
    return error.param == "model" or "model" in error.message.lower()


def _num_prompts(prompt: object) -> int:
    """A list of texts, or of token-id lists, asks for a choice for each; a list of ids is one prompt."""
    if not isinstance(prompt, list | tuple) or not prompt:
        return 1
    prompts = cast("list[object]", prompt)
    return 1 if isinstance(prompts[0], int) else len(prompts)
