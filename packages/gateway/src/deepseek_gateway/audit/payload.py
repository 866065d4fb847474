"""One request's texts on their way to the store."""

from dataclasses import dataclass, field

from deepseek_gateway.auth.records import KeyRecord


@dataclass(frozen=True, slots=True)
class Policy:
    """How long texts of a key or an organisation are kept; 0 days: not at all."""

    days: int
    mask_pii: bool


@dataclass(frozen=True, slots=True)
class Payload:
    """What was asked and answered, bounded in size. `repr` leaves the texts out.

    Attributes:
        subject: whose texts these are, and with whose data key they are sealed.
        created: Unix time.
        is_truncated: more was said than is kept.
    """

    request_id: str
    subject: str
    key_id: str
    policy: Policy
    created: float
    request: bytes = field(repr=False)
    answer: tuple[bytes, ...] = field(repr=False)
    is_stream: bool
    is_truncated: bool

    @property
    def size(self) -> int:
        """Bytes that it holds in memory."""
        return len(self.request) + sum(map(len, self.answer))


class Capture:
    """A relay stage that changes nothing and remembers what passes, up to a size."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self.parts: list[bytes] = []
        self.is_truncated = False

    def pass_on(self, frame: bytes) -> bytes:
        """Remember an event."""
        self._keep(frame)
        return frame

    def body(self, body: bytes) -> bytes:
        """Remember an answer in one piece."""
        self._keep(body)
        return body

    def _keep(self, data: bytes) -> None:
        room = self._max_bytes - self._size
        if len(data) > room:
            self.is_truncated = True
            if self.is_truncated and self.parts and data.startswith(b"data: "):
                return  # a part of an event could not be read
            data = data[:room]
        if data:
            self.parts.append(data)
            self._size += len(data)


def subject_of(key: KeyRecord) -> str:
    """Whose texts a key's requests are: its user's, or the key's own where it has none."""
    return f"key:{key.public_id}" if key.user_id is None else f"user:{key.user_id}"
