"""The chat playground: a page, and a way to ask with a key that stays here."""

from starlette.types import ASGIApp, Receive, Scope, Send

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.auth.records import Scope as KeyScope
from deepseek_gateway.edge.context import context_of
from deepseek_gateway.relay.request import Dialect
from deepseek_gateway.routes.generation import GenerationRoute
from deepseek_gateway.storage.keys import KeyFilter
from deepseek_gateway.web.page import Page
from deepseek_gateway.web.records import Role
from deepseek_gateway.web.refusals import PageError

KEY_HEADER = "x-playground-key"
MAX_KEYS = 200
"""Keys to choose from: an administrator of more pastes one."""


async def page(page: Page) -> ASGIApp:
    """The page. Only who may administer keys may choose one; everybody may paste one."""
    keys: list[KeyRecord] = []
    if page.may(Role.ADMIN):
        wanted = KeyFilter(state="active")
        records, _ = await page.web.call(page.gateway.keys.page, page.principal, wanted, limit=MAX_KEYS)
        keys = [key for key in records if KeyScope.INFERENCE in key.scopes]
    return page.html("playground.html", keys=keys, models=page.gateway.pool.known_models())


async def chat(page: Page) -> ASGIApp:
    """Relay one chat request, metered to the key that the header names: limits, ledger and all else as for callers.

    Raises:
        ApiError: 401, the key is over; 422, there is none.
    """
    public_id = page.request.headers.get(KEY_HEADER, "")
    if not public_id:
        raise PageError(422, page.text("playground.no_key"), code="no_key")
    key = await page.gateway.directory.lend(public_id)
    relay = GenerationRoute(page.gateway, Dialect.CHAT, "v1")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).lent_key = key
        await relay(scope, receive, send)

    return answer
