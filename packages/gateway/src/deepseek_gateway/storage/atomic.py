"""Methods of services that are one transaction."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from deepseek_gateway.storage.store import Store

P = ParamSpec("P")
Result = TypeVar("Result")


class HasStore(Protocol):
    """A service."""

    @property
    def store(self) -> Store:
        """Where it keeps things."""
        ...


Service = TypeVar("Service", bound=HasStore)


def atomic(method: Callable[Concatenate[Service, P], Result]) -> Callable[Concatenate[Service, P], Result]:
    """Make all that a method does to the store one transaction: the change, and the audit log's entry on it."""

    @functools.wraps(method)
    def within(self: Service, *args: P.args, **kwargs: P.kwargs) -> Result:
        with self.store.database.transaction():
            return method(self, *args, **kwargs)

    return within
