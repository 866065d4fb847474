"""The administration pages: their table of contents, and what every page gets around its own."""

import logging
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_gateway.edge.context import context_of
from deepseek_gateway.errors import ApiError, StoreSlowError, StoreUnavailableError, StoreValueError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.routes.table import RouteTable
from deepseek_gateway.web import views
from deepseek_gateway.web.page import SESSION_COOKIE, Page
from deepseek_gateway.web.records import Role
from deepseek_gateway.web.refusals import PageError, told
from deepseek_gateway.web.routes import PageRoute
from deepseek_gateway.web.services import Web, web_of

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 16 * 2**20
MAX_TEXT_BYTES = 2**20  # 100,000 characters, as forms write them

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def pages() -> list[PageRoute]:
    """Every page."""
    admin = Role.ADMIN
    return [
        PageRoute("GET", "/ui/static/{version}/{path...}", views.static.asset, None),
        PageRoute("GET", "/ui/login", views.login.form, None),
        PageRoute("POST", "/ui/login", views.login.sign_in, None),
        PageRoute("GET", "/ui/login/oidc", views.oidc.begin, None),
        PageRoute("GET", "/ui/login/callback", views.oidc.finish, None),
        PageRoute("POST", "/ui/logout", views.login.sign_out),
        PageRoute("POST", "/ui/preferences", views.preferences.choose, None),
        PageRoute("GET", "/ui/", views.overview.page),
        PageRoute("GET", "/ui/overview", views.overview.data, is_data=True),
        PageRoute("GET", "/ui/live", views.overview.live, is_data=True),
        PageRoute("GET", "/ui/usage", views.usage.page),
        PageRoute("GET", "/ui/usage.csv", views.usage.export),
        PageRoute("GET", "/ui/keys", views.keys.listing),
        PageRoute("GET", "/ui/keys/new", views.keys.form, admin),
        PageRoute("POST", "/ui/keys/new", views.keys.create, admin),
        PageRoute("GET", "/ui/keys/{id}", views.keys.detail),
        PageRoute("GET", "/ui/keys/{id}/edit", views.keys.edit, admin),
        PageRoute("POST", "/ui/keys/{id}/edit", views.keys.change, admin),
        PageRoute("POST", "/ui/keys/{id}/rotate", views.keys.rotate, admin),
        PageRoute("POST", "/ui/keys/{id}/disable", views.keys.disable, admin),
        PageRoute("POST", "/ui/keys/{id}/enable", views.keys.enable, admin),
        PageRoute("POST", "/ui/keys/{id}/revoke", views.keys.revoke, admin),
        PageRoute("GET", "/ui/people", views.people.listing),
        PageRoute("POST", "/ui/people", views.people.create_org, admin),
        PageRoute("GET", "/ui/people/{org}", views.people.detail),
        PageRoute("POST", "/ui/people/{org}/{kind}", views.people.create_member, admin),
        PageRoute("POST", "/ui/people/{org}/{kind}/{id}", views.people.change, admin),
        PageRoute("GET", "/ui/limits", views.limits.listing),
        PageRoute("GET", "/ui/limits/new", views.limits.form, admin),
        PageRoute("POST", "/ui/limits/new", views.limits.create, admin),
        PageRoute("POST", "/ui/limits/{id}/remove", views.limits.remove, admin),
        PageRoute("GET", "/ui/balances", views.balances.listing),
        PageRoute("POST", "/ui/balances", views.balances.top_up, admin),
        PageRoute("GET", "/ui/balances/{account}", views.balances.detail),
        PageRoute("GET", "/ui/requests", views.requests.listing),
        PageRoute("GET", "/ui/requests/{id}", views.requests.detail),
        PageRoute("GET", "/ui/words", views.words.listing),
        PageRoute("POST", "/ui/words", views.words.take, admin, max_form_bytes=MAX_LIST_BYTES),
        PageRoute("GET", "/ui/words/test", views.words.test_form),
        PageRoute("POST", "/ui/words/test", views.words.test, max_form_bytes=MAX_TEXT_BYTES),
        PageRoute("GET", "/ui/words/lists/{name}", views.words.detail),
        PageRoute("GET", "/ui/words/lists/{name}/export", views.words.export),
        PageRoute("POST", "/ui/words/lists/{name}/activate", views.words.activate, admin),
        PageRoute("POST", "/ui/words/lists/{name}/policy", views.words.set_policy, admin),
        PageRoute("POST", "/ui/words/lists/{name}/policy/drop", views.words.drop_policy, admin),
        PageRoute("GET", "/ui/review", views.review.listing),
        PageRoute("GET", "/ui/review/{id}", views.review.detail),
        PageRoute("POST", "/ui/review/{id}", views.review.decide, admin),
        PageRoute("GET", "/ui/audit", views.audit.listing),
        PageRoute("POST", "/ui/audit/verify", views.audit.verify),
        PageRoute("GET", "/ui/config", views.config.page),
        PageRoute("GET", "/ui/playground", views.playground.page),
        PageRoute("POST", "/ui/playground/chat", views.playground.chat, admin, is_data=True),
        PageRoute("GET", "/ui/account", views.account.page),
        PageRoute("POST", "/ui/account/password", views.account.change_password),
        PageRoute("POST", "/ui/account/sessions/end", views.account.end_session),
        PageRoute("GET", "/ui/{path...}", views.static.nothing, None),
    ]


def page_table(gateway: Gateway) -> RouteTable:
    """The routes of a gateway's pages."""
    web, table = web_of(gateway), RouteTable()
    for route in pages():
        table.add(route.method, route.path, PageApp(web, route))
    return table


@dataclass(frozen=True, slots=True)
class PageApp:
    """One page as an ASGI app."""

    web: Web
    route: PageRoute

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _secured(message["headers"])
            await send(message)

        context_of(scope).route = self.route.path
        page = Page(self.web, Request(scope, receive), self.route.path, scope["path_params"])
        try:
            answer = await self._answer(page)
        except ApiError as error:
            answer = self._failure(page, error)
        except StoreSlowError:
            answer = self._failure(page, PageError(503, page.text("error.slow"), code="report_too_large"))
        except StoreValueError as error:
            logger.warning("a page failed: %s", error)
            answer = self._failure(page, PageError(400, page.text("error.value"), code="invalid_value"))
        except StoreUnavailableError as error:
            logger.warning("a page failed: %s", error)
            failure = PageError(503, page.text("error.store"), code="store_unavailable", headers={"retry-after": "2"})
            answer = self._failure(page, failure)
        await answer(scope, receive, send_secured)

    async def _answer(self, page: Page) -> ASGIApp:
        route, cookie = self.route, page.request.cookies.get(SESSION_COOKIE)
        if cookie and not route.path.startswith("/ui/static/"):
            page.session = await self.web.call(self.web.sessions.find, cookie)
        if route.role is not None and page.session is None:
            if route.is_data or route.method == "POST":
                raise PageError(401, page.text("error.signed_out"), code="signed_out")
            return page.redirect("/ui/login", next=page.here)
        if route.role is not None and not page.may(route.role):
            raise PageError(403, page.text("error.role"), code="wrong_role")
        if route.method == "POST":
            await page.read_form(route.max_form_bytes)
        return await route.handler(page)

    def _failure(self, page: Page, error: ApiError) -> ASGIApp:
        answer: Response
        message, detail = told(page, error)
        if self.route.is_data:
            answer = JSONResponse({"error": {"message": message, "code": error.code}}, error.status)
        else:
            told_of = {"message": message, "detail": detail, "number": error.status, "back": page.form_page}
            answer = page.html("error.html", error.status, **told_of)
        answer.headers.update(error.headers)
        return answer


def _secured(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    there = {name for name, _ in headers}
    extra = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
    if b"cache-control" not in there:
        extra.append((b"cache-control", b"no-store"))
    return [*headers, *extra]
