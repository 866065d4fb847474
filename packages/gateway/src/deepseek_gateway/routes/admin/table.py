"""The admin API's routes, and the document that describes it: all that needs the models of operations."""

import asyncio

from starlette.types import Receive, Scope, Send

from deepseek_gateway.edge.context import context_of
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.openapi.document import document_bytes
from deepseek_gateway.openapi.operations import ADMIN
from deepseek_gateway.routes.admin.operation import AdminRoute
from deepseek_gateway.routes.table import RouteTable


def admin_table(gateway: Gateway) -> RouteTable:
    """Every operation with its handler."""
    table = RouteTable()

    async def document(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001  ASGI
        """The OpenAPI document."""
        context_of(scope).route = "/openapi.json"
        loop = asyncio.get_running_loop()
        await send_body(send, 200, await loop.run_in_executor(gateway.page_executor, document_bytes))

    table.get("/openapi.json", document)
    for operation in ADMIN:
        table.add(operation.method, operation.path, AdminRoute(gateway, operation))
    return table
