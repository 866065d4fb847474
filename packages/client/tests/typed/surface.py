"""What type checkers must see of the public surface; checked by test_typing.py, never run."""

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import assert_type

from pydantic import BaseModel

from deepseek_client import (
    AsyncDeepSeek,
    AsyncHTTPResponse,
    AsyncStream,
    Balance,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    DeepSeek,
    FileObject,
    Generation,
    HTTPRequest,
    HTTPResponse,
    Model,
    ParsedCompletion,
    RawResponse,
    Response,
    ResponseEvent,
    ResponseTextDelta,
    SearchResults,
    Stream,
    TokenCount,
    UsageTotals,
    cost,
)
from deepseek_client.middleware import AsyncSend, Send
from deepseek_client.raw import AsyncStreamingCall, StreamingCall


class Report(BaseModel):
    verdict: str


MESSAGES = [{"role": "user", "content": "Hi"}]


def of_the_sync_client(client: DeepSeek, stream: bool) -> None:
    chat = client.chat.completions
    assert_type(client.generate("Hi", temperature=0.5), Generation)
    assert_type(chat.create(messages=MESSAGES), ChatCompletion)
    assert_type(chat.create(messages=MESSAGES, stream=False, top_k=1), ChatCompletion)
    assert_type(chat.create(messages=MESSAGES, stream=True), Stream[ChatCompletionChunk, ChatCompletion])
    either = chat.create(messages=MESSAGES, stream=stream)
    assert_type(either, ChatCompletion | Stream[ChatCompletionChunk, ChatCompletion])
    assert_type(chat.parse(messages=MESSAGES, response_model=Report), ParsedCompletion[Report])
    assert_type(chat.parse(messages=MESSAGES, response_model=Report).parsed.verdict, str)
    assert_type(chat.continue_prefix(messages=MESSAGES, prefix="a"), ChatCompletion)
    assert_type(client.completions.create(prompt="Hi", stream=stream), Completion | Stream[Completion, Completion])
    assert_type(client.fim.create(prompt="a", suffix="b"), Completion)
    assert_type(client.fim.create(prompt="a", suffix="b", stream=True), Stream[Completion, Completion])
    assert_type(client.fim.create(prompt="a", stream=stream), Completion | Stream[Completion, Completion])
    assert_type(client.responses.create(input="Hi"), Response)
    with client.responses.create(input="Hi", stream=True) as events:
        assert_type(events, Stream[ResponseEvent, Response])
        for event in events:
            if isinstance(event, ResponseTextDelta):
                assert_type(event.delta, str)
    assert_type(client.responses.create(input="Hi", stream=stream), Response | Stream[ResponseEvent, Response])
    assert_type(client.models.list().data, list[Model])
    assert_type(client.user.balance(), Balance)
    assert_type(client.user.balance().balance_infos[0].total_balance, Decimal)
    assert_type(iter(client.files.list(limit=3)), Iterator[FileObject])
    assert_type(client.tools.search("x", count=3), SearchResults)
    assert_type(client.tokens.count("x"), TokenCount)
    assert_type(client.usage, UsageTotals)
    answer = chat.create(messages=MESSAGES)
    assert_type(answer.cost, Decimal | None)
    if answer.usage is not None:
        assert_type(cost(answer.usage, "deepseek-flash"), Decimal | None)
    assert_type(client.models.with_raw_response.list().parse().data, list[Model])
    assert_type(client.with_raw_response.generate("Hi", max_tokens=3), RawResponse[Generation])
    assert_type(client.with_streaming_response.generate("Hi"), StreamingCall[Generation])
    raw = chat.with_raw_response
    assert_type(raw.create(messages=MESSAGES), RawResponse[ChatCompletion])
    streamed = raw.create(messages=MESSAGES, stream=True)
    assert_type(streamed, RawResponse[Stream[ChatCompletionChunk, ChatCompletion]])
    one = raw.create(messages=MESSAGES, stream=stream)
    assert_type(one, RawResponse[ChatCompletion | Stream[ChatCompletionChunk, ChatCompletion]])
    assert_type(raw.parse(messages=MESSAGES, response_model=Report).parse().parsed, Report)
    assert_type(client.with_options(timeout=3, api_key="k"), DeepSeek)


async def of_the_async_client(client: AsyncDeepSeek, stream: bool) -> None:
    chat = client.chat.completions
    assert_type(await client.generate("Hi"), Generation)
    assert_type(await chat.create(messages=MESSAGES), ChatCompletion)
    assert_type(await chat.create(messages=MESSAGES, stream=True), AsyncStream[ChatCompletionChunk, ChatCompletion])
    either = await chat.create(messages=MESSAGES, stream=stream)
    assert_type(either, ChatCompletion | AsyncStream[ChatCompletionChunk, ChatCompletion])
    assert_type((await chat.parse(messages=MESSAGES, response_model=Report)).parsed, Report)
    assert_type(await client.responses.create(input="Hi", stream=True), AsyncStream[ResponseEvent, Response])
    assert_type(await client.fim.create(prompt="a", stream=stream), Completion | AsyncStream[Completion, Completion])
    assert_type(await client.user.balance(), Balance)
    assert_type(aiter(client.files.list()), AsyncIterator[FileObject])
    assert_type(await client.with_raw_response.generate("Hi"), RawResponse[Generation])
    assert_type(client.with_streaming_response.generate("Hi"), AsyncStreamingCall[Generation])


def log(request: HTTPRequest, send: Send) -> HTTPResponse:
    return send(request)


async def async_log(request: HTTPRequest, send: AsyncSend) -> AsyncHTTPResponse:
    return await send(request)


async def key() -> str:
    return "key"


DeepSeek(middleware=[log], api_key=lambda: "key")
AsyncDeepSeek(middleware=[async_log], api_key=key)
