"""The calls beside generating: responses, the account, the web. Flows: no I/O, one text for both clients."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from deepseek_client.core import Core
from deepseek_client.effects import Flow
from deepseek_client.error_mapping import error_of_event
from deepseek_client.params import CallOptions, ResponseParams, SearchParams
from deepseek_client.readings import ResponseReading
from deepseek_client.stream_core import StreamCore
from deepseek_client.types.account import Balance
from deepseek_client.types.responses import Response, ResponseEvent
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
