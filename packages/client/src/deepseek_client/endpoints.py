"""The calls beside generating: responses, the account, the web, files. Flows, one text for both clients.

No I/O but reading the caller's file.
"""

import json
import mimetypes
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from deepseek_client.core import Core
from deepseek_client.effects import Flow
from deepseek_client.error_mapping import error_of_event
from deepseek_client.readings import ResponseReading
from deepseek_client.request import CallOptions, CountParams, ListParams, ResponseParams, SearchParams, Upload
from deepseek_client.stream_core import StreamCore
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.responses import Response, ResponseEvent
from deepseek_client.types.services import (
    Balance,
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
    SearchResults,
    Tokenized,
    WebPage,
)

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


FileInput = str | os.PathLike[str] | tuple[str, bytes] | BinaryIO
"""A path, a name with bytes, or a file opened for reading bytes."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One field of a form."""

    name: str
    content: bytes
    filename: str | None = None

    def to_bytes(self) -> bytes:
        head = f'content-disposition: form-data; name="{_quoted(self.name)}"'
        if self.filename is not None:
            kind = mimetypes.guess_type(self.filename)[0] or "application/octet-stream"
            head += f'; filename="{_quoted(self.filename)}"\r\ncontent-type: {kind}'
        return head.encode() + b"\r\n\r\n" + self.content + b"\r\n"


def create_file(
    core: Core,
    file: FileInput,
    purpose: str,
    expires_after: ExpiresAfter | Mapping[str, Any] | int | None,
    params: Mapping[str, Any],
) -> Flow[FileObject]:
    """Upload a file."""
    filename, content = _read(file)
    extra: Mapping[str, Any] = params.get("extra_body") or {}
    parts = [_Part("purpose", purpose.encode())]
    if isinstance(expires_after, int):
        expires_after = ExpiresAfter(seconds=expires_after)
    if expires_after is not None:
        expiry = (
            expires_after if isinstance(expires_after, ExpiresAfter) else ExpiresAfter.model_validate(expires_after)
        )
        parts.append(_Part("expires_after[anchor]", expiry.anchor.encode()))
        parts.append(_Part("expires_after[seconds]", str(expiry.seconds).encode()))
    parts += [_Part(name, str(value).encode()) for name, value in extra.items()]
    parts.append(_Part("file", content, filename))
    call = replace(core.call(CallOptions, params), upload=multipart(parts))
    return core.post("files", call, FileObject)


def list_files(core: Core, params: Mapping[str, Any]) -> Callable[[str | None], Flow[FileList]]:
    """What gives the page after a file, and the first one for None."""
    call = core.call(ListParams, params)

    def page(after: str | None) -> Flow[FileList]:
        query = {**call.body, **({"after": after} if after is not None else {}), **call.query}
        return core.get("files", FileList, replace(call, query=query))

    return page


def retrieve_file(core: Core, file_id: str, params: Mapping[str, Any]) -> Flow[FileObject]:
    """What is known of one file."""
    return core.get(_path(file_id), FileObject, core.call(CallOptions, params))


def delete_file(core: Core, file_id: str, params: Mapping[str, Any]) -> Flow[FileDeleted]:
    """Delete one."""
    return core.get(_path(file_id), FileDeleted, core.call(CallOptions, params), method="DELETE")


def multipart(parts: list[_Part]) -> Upload:
    """A form of several parts. Source: RFC 7578; names quoted as browsers do."""
    boundary = os.urandom(16).hex()
    mark = f"--{boundary}\r\n".encode()
    body = b"".join(mark + part.to_bytes() for part in parts)
    return Upload(f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode())


def _read(file: FileInput) -> tuple[str, bytes]:
    if isinstance(file, tuple):
        return file
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        return path.name, path.read_bytes()
    name = getattr(file, "name", None)
    return Path(name).name if isinstance(name, str) else "file", file.read()


def _path(file_id: str) -> str:
    return f"files/{quote(file_id, safe='')}"


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


class Pager:
    """Iterate over it for every entry, or over `pages()`; a page is asked for when it is needed."""

    def __init__(self, page_after: Callable[[str | None], Flow[FileList]], transport: SyncTransport) -> None:
        self._page_after = page_after
        self._transport = transport

    def __iter__(self) -> Iterator[FileObject]:
        for page in self.pages():
            yield from page.data

    def pages(self) -> Iterator[FileList]:
        """The pages, the first one first."""
        after: str | None = None
        while True:
            page = self._transport.run(self._page_after(after))
            yield page
            after = next_after(page)
            if after is None:
                return


class AsyncPager:
    """Iterate over it for every entry, or over `pages()`; a page is asked for when it is needed."""

    def __init__(self, page_after: Callable[[str | None], Flow[FileList]], transport: AsyncTransport) -> None:
        self._page_after = page_after
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[FileObject]:
        async for page in self.pages():
            for item in page.data:
                yield item

    async def pages(self) -> AsyncIterator[FileList]:
        """The pages, the first one first."""
        after: str | None = None
        while True:
            page = await self._transport.run(self._page_after(after))
            yield page
            after = next_after(page)
            if after is None:
                return


def next_after(page: FileList) -> str | None:
    """The id after which the next page begins; None after the last."""
    if not page.has_more or not page.data:
        return None
    return page.last_id or page.data[-1].id
