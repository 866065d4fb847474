"""A socket between rank 0 and another rank: messages in turn, each waited for."""

import socket
from collections import deque
from typing import Final, Generic, TypeVar

import msgspec

from deepseek_engine.framing import FrameReader, encode_frame
from deepseek_engine.messages import Message

_READ_BYTES: Final = 2**18

Received = TypeVar("Received")


class Link(Generic[Received]):
    """One end.

    Args:
        sock: a connected stream socket.
        decoder: of what the other end sends.
    """

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Received]) -> None:
        self.sock = sock
        self._frames = FrameReader(decoder)
        self._received: deque[Received] = deque()

    def send(self, message: Message) -> None:
        """Send, waiting for the reader where it has fallen behind.

        Raises:
            OSError: the other end is gone.
        """
        self.send_frame(encode_frame(message))

    def send_frame(self, frame: bytes) -> None:
        """Send what `encode_frame` gave; raises as `send` does."""
        self.sock.sendall(frame)

    def receive(self) -> Received | None:
        """The next message; None once the other end is closed.

        Raises:
            FrameError: what came is no message.
        """
        while not self._received:
            try:
                data = self.sock.recv(_READ_BYTES)
            except OSError:
                return None
            if not data:
                return None
            self._received.extend(self._frames.feed(data))
        return self._received.popleft()
