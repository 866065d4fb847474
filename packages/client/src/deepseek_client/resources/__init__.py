"""One typed method for each endpoint, sync and async side by side. The methods are shells: `core` does the work."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

from deepseek_client.core import Core
from deepseek_client.transport import AsyncTransport, SyncTransport

T = TypeVar("T")


class Routes:
    """A group of routes, over what decides and what sends."""

    def __init__(self, core: Core, transport: SyncTransport) -> None:
        self._core = core
        self._transport = transport


class AsyncRoutes:
    """A group of routes, over what decides and what sends."""

    def __init__(self, core: Core, transport: AsyncTransport) -> None:
        self._core = core
        self._transport = transport


class Form(Generic[T]):
    """The same calls in another form.

    `with_raw_response` gives each answer with status, headers and bytes: a RawResponse. `with_streaming_response` gives
    one whose body is read as it is asked for: a StreamingResponse.

    Args:
        make: gives the calls in this form, of the group that has them in the usual one.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        return self if instance is None else self._make(instance)
