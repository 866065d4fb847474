"""Attributes that are made when they are first asked for, so that what makes them is imported then and not before."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class Deferred(Generic[T]):
    """An attribute of each instance, made by a function of the instance. Of two threads that ask, the first one wins.

    Args:
        make: gives the value.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self._name, self._make(instance))


class Resource(Deferred[T]):
    """A client's attribute for a group of routes: a class of `deepseek_client.resources`, named as `module.Class`."""

    def __init__(self, name: str) -> None:
        module, _, cls = name.partition(".")

        def make(client: Any) -> T:
            found = getattr(import_module(f"deepseek_client.resources.{module}"), cls)
            return found(client._core, client._transport)  # noqa: SLF001  every client has both

        super().__init__(make)
