"""What the core asks of a driver. The core is generators that yield effects and are sent the answers.

So every decision (what to send, what to retry, what an answer means) is written once, and tested without a socket; the
two drivers in `transport` know how to do each effect, and nothing else.

| effect  | the driver sends back                                                                     |
|---------|-------------------------------------------------------------------------------------------|
| `Enter` | a Place among the requests in flight, None if there is none in time                       |
| `Fetch` | the whole answer, a Reply                                                                 |
| `Open`  | an Opened if a stream of events began, else the whole answer, a Reply                     |
| `Read`  | the next bytes, `b""` at the end of the body                                              |
| `Close` | None; a body that was not read to its end takes its connection with it                    |
| `Sleep` | None                                                                                      |
| `AskKey` | the API key that the caller's function gave                                             |
| `CallTools` | what each function gave, in order; the text of its failure where it raised              |

A driver throws APIConnectionError or APITimeoutError into the core, and nothing else. It closes a flow that it leaves,
as when its task is cancelled, so that what the flow holds is let go at once.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from deepseek_client.errors import ConfigurationError, Phase, ToolArgumentsError
from deepseek_client.pacing import Limiter, Place
from deepseek_client.request import HTTPRequest

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response; header names in lower case. The last two are the exchange's to say, not the driver's.

    Attributes:
        retries_taken, elapsed_s: of the call that it answers.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    retries_taken: int = 0
    elapsed_s: float | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A response whose body is a stream of events. `body` belongs to the driver; `let_go` ends it.

    Attributes:
        place: the request's place among those in flight, where they are limited.
    """

    status: int
    headers: dict[str, str]
    body: Any
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Enter:
    """Wait for a place among the requests in flight, so many seconds at most."""

    limiter: Limiter
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send a request and read the whole answer; `deadline` is on the monotonic clock.

    `middleware` holds the caller's functions around this one attempt, the outermost first; `place` is the request's,
    where those in flight are limited.
    """

    request: HTTPRequest
    deadline: float | None
    middleware: tuple[Any, ...] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request that asks for a stream; with `is_any` every successful answer is one, whatever its type."""

    request: HTTPRequest
    deadline: float | None
    middleware: tuple[Any, ...] = ()
    is_any: bool = False
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Read the next bytes of a stream; past `deadline` the body is closed and APITimeoutError says `phase`."""

    body: Any
    deadline: float | None
    phase: Phase


@dataclass(frozen=True, slots=True)
class Close:
    """Let go of a stream's response."""

    body: Any


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AskKey:
    """Ask the caller's function for the API key."""

    provider: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A model's wish to have a function called; `tool` is None where it named none of `known`."""

    tool: Any
    name: str
    arguments: str
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallTools:
    """Call functions of the caller; with asyncio all at once."""

    requests: list[ToolRequest]


Effect = Enter | Fetch | Open | Read | Close | Sleep | AskKey | CallTools
Flow = Generator[Effect, Any, ResultT]
"""A generator of effects that returns a ResultT."""


def let_go(opened: Opened) -> Flow[None]:
    """Close a response, and leave its place."""
    try:
        yield Close(opened.body)
    finally:
        if opened.place is not None:
            opened.place.leave()


def is_wanted(effect: Open, status: int, headers: dict[str, str]) -> bool:
    """Whether a response is left open for its reader."""
    return 200 <= status < 300 if effect.is_any else is_event_stream(status, headers)


def is_event_stream(status: int, headers: dict[str, str]) -> bool:
    """Whether a response is to be read as events. Some servers send no content type, or a loose one."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return 200 <= status < 300 and kind in ("text/event-stream", "", "text/plain", "application/octet-stream")


def ask_key(provider: Callable[[], Any]) -> str | None:
    """The key that a plain function gives.

    Raises:
        ConfigurationError: the function is a coroutine function, or gives something else than a key.
    """
    key = provider()
    if inspect.isawaitable(key):
        getattr(key, "close", lambda: None)()  # never awaited
        raise ConfigurationError("api_key is a coroutine function: use AsyncDeepSeek")
    return _text(key)


async def ask_key_async(provider: Callable[[], Any]) -> str | None:
    """The key that a function or a coroutine function gives."""
    key = provider()
    return _text(await key if inspect.isawaitable(key) else key)


def _text(key: Any) -> str | None:
    if key is None or isinstance(key, str):
        return key
    raise ConfigurationError(f"api_key() gave a {type(key).__name__}, not a string")


def call_tool(request: ToolRequest) -> object:
    """What the function gave, or the text of its failure: the model is told, and may try otherwise."""
    try:
        arguments = _bind(request)
        return request.tool.function(**arguments)
    except Exception as error:  # whatever a tool raises is an answer to the model; an interrupt is none
        return failure_text(error)


async def call_tool_async(request: ToolRequest) -> object:
    """As `call_tool`; functions that block go to a thread, so that the loop runs on."""
    try:
        arguments = _bind(request)
        if request.tool.is_async:
            return await request.tool.function(**arguments)
        return await asyncio.to_thread(request.tool.function, **arguments)
    except Exception as error:
        return failure_text(error)


def failure_text(error: Exception) -> str:
    """What the model is told of a tool that failed."""
    return json.dumps({"error": f"{type(error).__name__}: {error}"}, ensure_ascii=False)


def _bind(request: ToolRequest) -> dict[str, Any]:
    if request.tool is None:
        raise ToolArgumentsError(f"there is no tool {request.name!r}, only: {', '.join(request.known)}")
    return request.tool.bind(request.arguments)
