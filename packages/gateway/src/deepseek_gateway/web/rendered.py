"""A page whose template is rendered in a thread: a long list, or a template's first use, takes up to 100 ms of CPU."""

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Rendered(Response):
    """HTML that is made when it is sent.

    Args:
        make: gives the text, off the event loop.
        status: of the answer.
        finish: called then: what the text needs beside it, such as a cookie.
    """

    media_type = "text/html"

    def __init__(self, make: Callable[[], Awaitable[str]], status: int, finish: Callable[[Response], None]) -> None:
        super().__init__(None, status)
        self._make = make
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make it and send it."""
        self.body = self.render(await self._make())
        self.headers["content-length"] = str(len(self.body))
        self._finish(self)
        await super().__call__(scope, receive, send)
