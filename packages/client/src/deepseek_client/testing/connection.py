"""What a handler is given: one request, and the means to answer it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Request:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def is_stream(self) -> bool:
        """Whether it asks for a stream of events."""
        return bool(self.body) and bool(self.json.get("stream"))

    def assert_json(self, **fields: object) -> None:
        """Fail if a field of the body is another; None stands for one that is not there.

        Raises:
            AssertionError: names what differs.
        """
        body = self.json
        wrong = [
            f"{name}={body.get(name)!r}, not {value!r}" for name, value in fields.items() if body.get(name) != value
        ]
        if wrong:
            raise AssertionError(f"{self.method} {self.path} has {'; '.join(wrong)}")


class Connection(ABC):
    """The server's end of one exchange. The methods block, and run in a thread of the server."""

    request: Request

    def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Begin an answer whose body follows in chunks. `retry_after="1"` is the header retry-after."""
        self.begin(status, _headers(content_type, headers))

    def reply(self, content: bytes, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """A whole answer, with its length."""
        self.begin(status, {**_headers(content_type, headers), "content-length": str(len(content))})
        self.chunk(content)

    def send(self, data: bytes) -> None:
        """Send bytes as they are, for answers that are no proper HTTP; only on a socket.

        Raises:
            NotImplementedError: there is none.
        """
        raise NotImplementedError(f"there is no socket to send {data[:40]!r} to: use the server's url")

    @abstractmethod
    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status and the headers; without a content-length the body is chunked."""

    @abstractmethod
    def chunk(self, data: bytes) -> None:
        """Send a piece of the body, at once."""

    @abstractmethod
    def end(self) -> None:
        """End a body that came in chunks."""

    @abstractmethod
    def cut(self) -> None:
        """Break the connection here, whatever was promised.

        Raises:
            ConnectionAbortedError: always, to leave the handler.
        """

    @abstractmethod
    def until_closed(self) -> None:
        """Returns when the client has gone."""


Handler = Callable[[Connection], bool | None]
"""Answers one request by its Connection; False closes the connection."""


def _headers(content_type: str, headers: Mapping[str, str]) -> dict[str, str]:
    return {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
