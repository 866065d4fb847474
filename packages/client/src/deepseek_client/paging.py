"""Pager and AsyncPager: a list that the server hands out in pages."""

from collections.abc import AsyncIterator, Callable, Iterator

from deepseek_client.effects import Flow
from deepseek_client.transport import AsyncTransport, SyncTransport
from deepseek_client.types.files import FileList, FileObject


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
