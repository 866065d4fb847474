"""Where the pages hang on the gateway's routes. They load with the first visitor: a start waits for none of it."""

from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from deepseek_gateway.edge.context import context_of
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.lazy import LazyTable
from deepseek_gateway.routes.table import RouteTable
from deepseek_gateway.web.oidc import oidc_config


def add_pages(table: RouteTable, gateway: Gateway) -> None:
    """Serve the pages below `/ui`; `/` leads to them.

    Raises:
        ConfigurationError: the sign-in with OpenID Connect is configured in part.
    """
    oidc_config(gateway.settings)
    pages = LazyTable(gateway, "web.app", "page_table")
    for path in ("/ui/", "/ui/{path...}"):
        table.get(path, pages)
        table.post(path, pages)
    table.get("/", to_pages)
    table.get("/ui", to_pages)


async def to_pages(scope: Scope, receive: Receive, send: Send) -> None:
    """`/` and `/ui` lead to the pages."""
    context_of(scope).route = "/"
    await RedirectResponse("/ui/", 307)(scope, receive, send)
