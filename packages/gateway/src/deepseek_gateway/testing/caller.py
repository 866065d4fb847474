"""An HTTP client that shows tests what a gateway sends, byte by byte."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The `error` of an error body."""
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        """The events of a stream, as text."""
        return [event for event in self.body.decode().split("\n\n") if event]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of a stream's unnamed events."""
        data = [event.removeprefix("data: ") for event in self.events if event.startswith("data: ")]
        return [json.loads(item) for item in data if item != "[DONE]"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A client with a key."""

    session: aiohttp.ClientSession
    url: str
    key: str | None

    @property
    def key_id(self) -> str:
        """The key's public id."""
        assert self.key is not None
        return self.key.split("_")[1]

    def with_key(self, key: str | None) -> "Caller":
        """The same client with another key."""
        return Caller(self.session, self.url, key)

    def open(
        self, path: str, body: Any = None, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> Any:
        """Begin a request: a context manager that gives the answer's head. Bytes are sent as they are, else as JSON."""
        sent = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        data: Any = json.dumps(body) if isinstance(body, dict) else body
        return self.session.request(method, f"{self.url}{path}", headers={**sent, **(headers or {})}, data=data)

    async def get(self, path: str) -> Reply:
        """A whole answer to GET."""
        async with self.open(path, method="GET") as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def post(
        self, path: str = "/v1/generate", body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """A whole answer to POST; a prompt of three words if no body is given."""
        async with self.open(path, {"prompt": "a b c"} if body is None else body, headers=headers) as answer:
            return Reply(answer.status, answer.headers, await answer.read())


async def next_event(answer: aiohttp.ClientResponse) -> str:
    """The next event of a stream, without its blank line."""
    return (await answer.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")


async def until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Poll until something is true.

    Raises:
        TimeoutError: it is not after `timeout_s`.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  a poll is the point
            await asyncio.sleep(0.002)
