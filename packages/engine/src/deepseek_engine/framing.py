"""Messages on a byte stream: four bytes of length, then msgpack, decoded to its declared types or refused."""

from typing import Final, Generic, TypeVar

import msgspec

from deepseek_engine.errors import EngineError
from deepseek_engine.messages import Message

MAX_FRAME_BYTES: Final = 64 * 2**20
"""Far above the largest real message, a prompt of a million tokens at 5 bytes each."""

_HEADER_BYTES: Final = 4
_encoder = msgspec.msgpack.Encoder()

Received = TypeVar("Received")


class FrameError(EngineError):
    """The other side sent something that is not one of its messages."""


def encode_frame(message: Message) -> bytes:
    """One message, ready to send.

    Raises:
        FrameError: it is over MAX_FRAME_BYTES.
    """
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"message of {len(payload)} bytes: the limit is {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(_HEADER_BYTES, "big") + payload


class FrameReader(Generic[Received]):
    """Collects bytes and gives back the messages that are complete."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Received]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Received]:
        """Add received bytes, cut anywhere; returns all messages that they complete.

        Raises:
            FrameError: a frame is over MAX_FRAME_BYTES, or holds no known message.
        """
        self._buffer += data
        messages: list[Received] = []
        start = 0
        while len(self._buffer) - start >= _HEADER_BYTES:
            body = start + _HEADER_BYTES
            length = int.from_bytes(self._buffer[start:body], "big")
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"frame of {length} bytes: the limit is {MAX_FRAME_BYTES}")
            if len(self._buffer) < body + length:
                break
            start = body + length
            messages.append(self._decode(self._buffer[body:start]))
        del self._buffer[:start]
        return messages

    def _decode(self, payload: bytearray) -> Received:
        try:
            return self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise FrameError(f"not a message: {error}") from error
