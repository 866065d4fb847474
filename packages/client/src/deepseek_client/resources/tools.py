"""`client.tools`."""

from typing import Unpack

from deepseek_client.core import Core
from deepseek_client.endpoints import fetch_page, search
from deepseek_client.params import CallOptions, SearchParams
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.web import SearchResults, WebPage


class WebTools:
    """The web, as DeepSeek's cloud offers it to programs; billed by the call."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport

    def search(self, query: str, **params: Unpack[SearchParams]) -> SearchResults:
        """Find pages. `count` is how many, `need_content` asks for their text as well.

        Raises:
            NotFoundError: the server has no search.
        """
        return self._transport.run(search(self._core, query, params))

    def fetch(self, url: str, **params: Unpack[CallOptions]) -> WebPage:
        """Read one page, as markdown.

        Raises:
            NotFoundError: the server cannot fetch.
        """
        return self._transport.run(fetch_page(self._core, url, params))


class AsyncWebTools:
    """The web, as DeepSeek's cloud offers it to programs; billed by the call."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport

    async def search(self, query: str, **params: Unpack[SearchParams]) -> SearchResults:
        """Find pages. `count` is how many, `need_content` asks for their text as well.

        Raises:
            NotFoundError: the server has no search.
        """
        return await self._transport.run(search(self._core, query, params))

    async def fetch(self, url: str, **params: Unpack[CallOptions]) -> WebPage:
        """Read one page, as markdown.

        Raises:
            NotFoundError: the server cannot fetch.
        """
        return await self._transport.run(fetch_page(self._core, url, params))
