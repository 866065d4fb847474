"""The API process's connection to the core process: starting it, frames both ways, and knowing when it is gone."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from typing import cast

import msgspec

from deepseek_engine.framing import FrameError, FrameReader, encode_frame
from deepseek_engine.messages import FromCore, Heartbeat, Message, Ready, StartFailed, StepOutputs

logger = logging.getLogger(__name__)


class CoreLink(asyncio.Protocol):
    """The socket's end on the event loop.

    Attributes:
        first_answer: Ready or StartFailed; None if the core died before it said either.
        lost: done when the connection is gone.
        on_message: called with all that comes after the first answer; one socket read may bring several.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first_answer: asyncio.Future[Ready | StartFailed | None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.on_message: Callable[[StepOutputs | Heartbeat], None] | None = None
        self._frames = FrameReader(msgspec.msgpack.Decoder[FromCore](FromCore))
        self._transport: asyncio.Transport | None = None

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.lost.done()

    def send(self, message: Message) -> None:
        """Queue a message; what is sent on a lost connection goes nowhere.

        Raises:
            FrameError: it is too large; nothing was sent.
        """
        assert self._transport is not None
        self._transport.write(encode_frame(message))

    def close(self) -> None:
        """Cut the connection, which tells the core to exit."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the socket is ready."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Asyncio: decode and pass on every message that the bytes complete."""
        try:
            messages = self._frames.feed(data)
        except FrameError:
            logger.exception("unreadable message from the core")
            self.close()
            return
        for message in messages:
            if isinstance(message, StepOutputs | Heartbeat):
                if self.on_message is not None:  # a heartbeat may come before anybody listens
                    self.on_message(message)
            elif not self.first_answer.done():
                self.first_answer.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Asyncio: the core has gone, or we cut the connection."""
        if not self.first_answer.done():
            self.first_answer.set_result(None)
        self.lost.set_result(None)


async def spawn_core(runner: str) -> tuple[asyncio.subprocess.Process, CoreLink]:
    """Start a core process with one end of a socket pair, and connect to the other."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as on_failure:
        on_failure.callback(ours.close)
        # -P: the working directory is not a place to import modules from.
        command = [sys.executable, "-P", "-m", "deepseek_engine.core_process", "--fd", str(theirs.fileno())]
        level = logging.getLevelName(logger.getEffectiveLevel())
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--runner", runner, "--log-level", level),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        on_failure.callback(process.kill)
        _, link = await asyncio.get_running_loop().create_unix_connection(CoreLink, sock=ours)
        on_failure.pop_all()
    return process, link


async def wait_or_kill(process: asyncio.subprocess.Process, timeout_s: float) -> int:
    """The process's exit status, negative for a signal; killed if it has not exited in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()
