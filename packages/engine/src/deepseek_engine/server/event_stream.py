"""The sending half of a streamed answer: headers with the first event, comments when nothing has come for a while."""

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.types import Send

from deepseek_client.sse import DONE, KEEP_ALIVE, encode_event

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Sends events. Headers wait for the first of them, so that a failure before it still gets a status of its own.

    Args:
        send: ASGI's.
        write_more: the server's short way (`http.WRITE_KEY`), if it has one.
        keep_alive_s: silence after which a comment goes out.
    """

    def __init__(self, send: Send, keep_alive_s: float, write_more: Callable[[bytes], bool] | None = None) -> None:
        self._send = send
        self._write_more = write_more
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._last_send_s = self._loop.time()
        self.has_begun = False

    def write_now(self, events: bytes) -> bool:
        """Send whole events if that takes no waiting; False: nothing was sent, and `write` has to."""
        if self._write_more is None or not self.has_begun or not self._write_more(events):
            return False
        self._last_send_s = self._loop.time()
        return True

    async def write(self, events: bytes) -> None:
        """Send whole events, once the connection has room for them."""
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self._last_send_s = self._loop.time()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes = b"") -> None:
        """Send the last events with `[DONE]`."""
        await self.write(events + DONE)
        await self._send({"type": "http.response.body"})

    async def fail(self, body: bytes) -> None:
        """Send an error body as the last event; there is no `[DONE]` after it."""
        await self.write(encode_event(body, event="error"))
        await self._send({"type": "http.response.body"})

    async def keep_alive(self) -> None:
        """Send a comment whenever nothing else was sent for `keep_alive_s`. Runs beside the writer until cancelled."""
        while True:
            silence_s = self._loop.time() - self._last_send_s
            if silence_s >= self._keep_alive_s:
                await self.write(KEEP_ALIVE)
            else:
                await asyncio.sleep(self._keep_alive_s - silence_s)
