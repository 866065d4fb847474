"""One page of the table: its path, who may see it, and what gives its answer."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from deepseek_gateway.web.page import Page
from deepseek_gateway.web.records import Role

MAX_FORM_BYTES = 128 * 1024

Handler = Callable[[Page], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class PageRoute:
    """One page.

    Attributes:
        method: GET or POST.
        path: as `RouteTable` takes it.
        handler: gives the answer.
        role: what somebody must at least be; None is everybody, signed in or not.
        is_data: it answers a script: errors are JSON, not pages.
        max_form_bytes: the most that a form may hold, files and all.
    """

    method: str
    path: str
    handler: Handler
    role: Role | None = Role.VIEWER
    is_data: bool = False
    max_form_bytes: int = MAX_FORM_BYTES
