"""Handlers that answer badly, and ways to spoil a good answer."""

import time
from collections.abc import Mapping

from deepseek_client.testing.answers import reply
from deepseek_client.testing.connection import Connection, Handler


def error(
    status: int, message: str = "the script says so", *, code: str | None = None, retry_after_s: float | None = None
) -> Handler:
    """A refusal in the usual form."""
    headers = {} if retry_after_s is None else {"retry_after": f"{retry_after_s:g}"}
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return reply(body, status, "application/json", **headers)


def storm(times: int, *, status: int = 429, retry_after_s: float | None = 0.0) -> list[Handler]:
    """So many refusals: `server.script(*storm(3), answer("Hello"))`."""
    return [error(status, "too many requests", code="rate_limit_exceeded", retry_after_s=retry_after_s)] * times


def flat_error(status: int, message: str = "the script says so") -> Handler:
    """A refusal without the `error` around its fields, as vLLM and SGLang send them."""
    return reply({"object": "error", "message": message, "type": "BadRequestError", "code": status}, status)


def html(status: int = 200, body: str = "<html><body>Sign in</body></html>") -> Handler:
    """A page, as a proxy or a login in between answers."""
    return reply(body.encode(), status, "text/html")


def blank(body: bytes = b"") -> Handler:
    """A 200 with nothing in it, or with blank lines only, as DeepSeek's queue leaves them."""
    return reply(body)


def silence() -> Handler:
    """No answer, until the client leaves."""
    return lambda connection: connection.until_closed()


def drop() -> Handler:
    """The connection breaks before a byte of the answer."""
    return lambda connection: connection.cut()


def cut(handler: Handler, after_bytes: int) -> Handler:
    """The answer's body breaks off after so many bytes."""
    return lambda connection: handler(_Cut(connection, after_bytes))


def slowly(handler: Handler, pause_s: float = 0.001, num_bytes: int = 1) -> Handler:
    """The answer's body comes in pieces of so many bytes, with a pause before each."""
    return lambda connection: handler(_Slow(connection, pause_s, num_bytes))


def keep_alives(handler: Handler, times: int = 3) -> Handler:
    """Before the answer come signs of life, as DeepSeek's queue sends them: comments of a stream, else blank lines."""
    return lambda connection: handler(_KeptAlive(connection, times))


class _Spoiled(Connection):
    """A connection that passes everything on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.request = connection.request

    def send(self, data: bytes) -> None:
        self._connection.send(data)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._connection.begin(status, headers)

    def chunk(self, data: bytes) -> None:
        self._connection.chunk(data)

    def end(self) -> None:
        self._connection.end()

    def cut(self) -> None:
        self._connection.cut()

    def until_closed(self) -> None:
        self._connection.until_closed()


class _Cut(_Spoiled):
    def __init__(self, connection: Connection, left: int) -> None:
        super().__init__(connection)
        self._left = left

    def chunk(self, data: bytes) -> None:
        kept = data[: self._left]
        if kept:
            super().chunk(kept)
        self._left -= len(data)
        if self._left < 0:
            self.cut()


class _Slow(_Spoiled):
    def __init__(self, connection: Connection, pause_s: float, num_bytes: int) -> None:
        super().__init__(connection)
        self._pause_s = pause_s
        self._num_bytes = num_bytes

    def chunk(self, data: bytes) -> None:
        for start in range(0, len(data), self._num_bytes):
            time.sleep(self._pause_s)
            super().chunk(data[start : start + self._num_bytes])


class _KeptAlive(_Spoiled):
    def __init__(self, connection: Connection, times: int) -> None:
        super().__init__(connection)
        self._times = times

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        sign = b": keep-alive\n\n" if "event-stream" in headers["content-type"] else b"\n"
        length = headers.get("content-length")
        if length is not None:
            headers = {**headers, "content-length": str(int(length) + len(sign) * self._times)}
        super().begin(status, headers)
        for _ in range(self._times):
            super().chunk(sign)
