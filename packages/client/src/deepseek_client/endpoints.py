"""The calls beside generating: responses, the account, the web. Flows: no I/O, one text for both clients."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deepseek_client.core import Core
from deepseek_client.effects import Flow
from deepseek_client.error_mapping import error_of_event
from deepseek_client.params import CallOptions, CountParams, ResponseParams, SearchParams
from deepseek_client.readings import ResponseReading
from deepseek_client.stream_core import StreamCore
from deepseek_client.types.account import Balance
from deepseek_client.types.responses import Response, ResponseEvent
from deepseek_client.types.tokens import Tokenized
from deepseek_client.types.web import SearchResults, WebPage

ResponseStreamCore = StreamCore[ResponseEvent, Response]


def respond(core: Core, given: str | Iterable[Any], params: Mapping[str, Any]) -> Flow[Response]:
    """An answer of `/v1/responses`.

    Raises:
        APIStatusError: the answer says that it failed, or so does the status.
    """
    call = core.call(ResponseParams, params, input=_input(given))
    response = yield from core.with_model(call, lambda call: core.post("responses", call, Response))
    if response.status == "failed":
        failed = json.dumps({"type": "response.failed", "response": response.to_wire()})
        headers = {"x-request-id": response.request_id} if response.request_id else {}
        error = error_of_event(failed, headers, secret=core.exchange.secret)
        assert error is not None, "a failed response always gives one"
        raise error
    return response


def open_response(core: Core, given: str | Iterable[Any], params: Mapping[str, Any]) -> ResponseStreamCore:
    """A stream of one; it ends with its terminal event."""
    call = core.call(ResponseParams, params, input=_input(given), stream=True)
    return core.stream("responses", call, ResponseReading)


def balance(core: Core) -> Flow[Balance]:
    """What the account has left."""
    return core.get("/user/balance", Balance)


def search(core: Core, query: str, params: Mapping[str, Any]) -> Flow[SearchResults]:
    """Pages of the web for a query."""
    return core.post("/v1/tools/search", core.call(SearchParams, params, query=query), SearchResults)


def fetch_page(core: Core, url: str, params: Mapping[str, Any]) -> Flow[WebPage]:
    """One page of the web."""
    return core.post("/v1/tools/fetch", core.call(CallOptions, params, url=url), WebPage)


def _input(given: str | Iterable[Any]) -> str | list[Any]:
    return given if isinstance(given, str) else list(given)


_EAST_ASIAN = r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A number of tokens, `int()` of it too.

    Attributes:
        tokens: how many.
        is_estimate: it follows from the number of characters; else the server has counted.
        token_ids: the tokens themselves, where the server gave them.
    """

    tokens: int
    is_estimate: bool
    token_ids: list[int] | None = None

    def __int__(self) -> int:
        return self.tokens

    def __str__(self) -> str:
        return f"about {self.tokens}" if self.is_estimate else str(self.tokens)


def estimate_tokens(text: str) -> TokenCount:
    """DeepSeek's rule of thumb: 0.3 token for a character, 0.6 for a Chinese, Japanese or Korean one.

    Source: api-docs.deepseek.com/quick_start/token_usage.
    """
    wide = len(re.findall(_EAST_ASIAN, text))  # compiled when first used: ranges this wide take 9 ms
    return TokenCount(-(-(6 * wide + 3 * (len(text) - wide)) // 10), is_estimate=True)


def count_tokens(core: Core, given: str | Iterable[Any], params: Mapping[str, Any]) -> Flow[TokenCount]:
    """The count of a text, or of a conversation under the model's template."""
    what = {"prompt": given} if isinstance(given, str) else {"messages": list(given)}
    call = core.call(CountParams, params, **what)
    answer = yield from core.with_model(call, lambda call: core.post("/tokenize", call, Tokenized))
    return TokenCount(answer.count, is_estimate=False, token_ids=answer.tokens)
