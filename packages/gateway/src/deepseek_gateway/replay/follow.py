"""Bring a recording to one caller, from some piece on."""

from dataclasses import dataclass

from starlette.types import Receive, Send

from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.edge.respond import end_stream, send_part
from deepseek_gateway.edge.watch import QuietError, RequestWatch, StoppingError
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.replay.book import lost
from deepseek_gateway.replay.recording import Follower, LostError, Recording


@dataclass(slots=True)
class Following:
    """One caller of a recording."""

    gateway: Gateway
    recording: Recording
    context: RequestContext
    watch: RequestWatch
    send: Send
    follower: Follower
    has_begun: bool = False

    async def run(self) -> None:
        """Send what comes until the answer is over.

        Raises:
            ApiError: it ended before it began.
            WatchError: the caller left, or does not read.
        """
        while True:
            await self._news()
            recording = self.recording
            if recording.failure is not None and not self.has_begun:
                raise recording.failure
            if recording.head is None:
                if recording.is_over:
                    raise ApiError(502, "the answer ended before it began", code="upstream_error")
                continue
            await self._begin()
            try:
                data = recording.take(self.follower)
            except LostError:
                await self._break_off()
                return
            if data:
                await self.watch.sending(send_part(self.send, data))
            elif recording.is_over:
                await self.watch.sending(end_stream(self.send))
                return

    async def _news(self) -> None:
        """Wait for news, with a sign of life to a stream's caller at each silence."""
        while True:
            try:
                await self.watch.reading(self.recording.news(self.follower))
            except QuietError:
                head = self.recording.head
                if self.has_begun and head is not None and head.is_stream:
                    await self.watch.sending(send_part(self.send, self.context.errors.keep_alive))
            except StoppingError:
                self.watch.allow_last_words()  # the exchange hears it too, and says so to all who follow
            else:
                return

    async def _begin(self) -> None:
        head = self.recording.head
        if self.has_begun or head is None:
            return
        self.has_begun = True
        headers = [(name, value) for name, value in head.headers if name != b"x-request-id"]
        is_known = any(name == b"x-replay-of" for name, _ in headers)  # another gateway's answer
        if self.recording.request_id != self.context.request_id and not is_known:
            headers.append((b"x-replay-of", self.recording.request_id.encode()))
        message = {"type": "http.response.start", "status": head.status, "headers": headers}
        await self.watch.sending(self.send(message))

    async def _break_off(self) -> None:
        """The caller was too slow: the ring has gone on without it."""
        errors = self.context.errors
        body = errors.body(lost("this stream was read too slowly to be followed"))
        await self.watch.sending(send_part(self.send, errors.event(body)))
        await self.watch.sending(end_stream(self.send))


async def follow(
    gateway: Gateway, recording: Recording, position: int, context: RequestContext, receive: Receive, send: Send
) -> None:
    """Serve one caller from a recording.

    Raises:
        ApiError: 409, what it asks for is not kept any more; or as the exchange failed.
        WatchError: the caller left, or does not read.
    """
    try:
        follower = recording.join(position)
    except LostError:
        raise lost("the beginning of this answer is not kept any more") from None
    settings = gateway.settings
    watch = RequestWatch(receive, settings.keep_alive_s, settings.send_timeout_s)
    gateway.watches.add(watch)
    try:
        await Following(gateway, recording, context, watch, send, follower).run()
    finally:
        recording.leave(follower)
        gateway.watches.discard(watch)
        watch.close()
